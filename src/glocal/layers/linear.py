"""Linear layers, which on a CPU go where their products are quickest."""

import platform
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MANY_VALUES = 32768
"""Of an input: ATen gives those of up to 20480 to another, slow routine."""
MANY_TOKENS, MANY_TO_TRAIN = 128, 512
"""Below, laying out the weights for the product takes longer than it saves: without and with a backward pass."""


class Linear(nn.Linear):
    """`torch.nn.Linear`; on AMD's processors with AVX-512 the equal 1x1 convolution over a map as wide as all tokens.

    torch gives linear layers in float32 to MKL, which has half the speed of oneDNN there, and convolutions to oneDNN:
    docs/performance.md has the figures. Nothing is copied: a row of tokens is such a map, channels last. Small inputs,
    compiled and exported graphs and everything else have the linear layer as it is.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        if not self.by_convolution(input):
            return F.linear(input, self.weight, self.bias)
        x = input.reshape(1, 1, -1, self.in_features).permute(0, 3, 1, 2)  # (1, in, 1, N), channels last
        weight = self.weight.view(self.out_features, 1, 1, self.in_features).permute(0, 3, 1, 2)
        # one pixel cannot be dilated; that it is asked for takes ATen to oneDNN on one thread too
        x = F.conv2d(x, weight, self.bias, dilation=2)
        return x.permute(0, 2, 3, 1).reshape(*input.shape[:-1], self.out_features)

    def by_convolution(self, x: Tensor) -> bool:
        """Whether that is the quicker way."""
        if (
            not SUITED or torch.compiler.is_compiling() or torch._C._get_tracing_state()
        ):  # a graph must not ask for sizes
            return False
        if x.device.type != "cpu" or x.dtype != torch.float32 or x.numel() <= MANY_VALUES:
            return False
        trains = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        many = MANY_TO_TRAIN if trains else MANY_TOKENS
        return x.numel() >= many * self.in_features and bool(torch.backends.mkldnn.enabled)


def _suited() -> bool:
    try:
        maker = Path("/proc/cpuinfo").read_text()[:256]
    except OSError:
        maker = platform.processor()
    return "AuthenticAMD" in maker and torch.backends.cpu.get_cpu_capability() == "AVX512"


SUITED = _suited()
"""Whether this processor is one of those on which it was measured to gain (docs/results/linear.md)."""
