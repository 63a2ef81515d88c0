"""Linear layers with a faster matrix product on some CPUs."""

import platform
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MANY_VALUES = 32768
"""Input values: ATen uses another, slow routine for up to 20480."""
MANY_TOKENS, MANY_TO_TRAIN = 128, 512
"""Below, packing the weights takes longer than it saves: without and with a backward pass."""


class Linear(nn.Linear):
    """`torch.nn.Linear`; on AMD CPUs with AVX-512 computed as the equivalent 1x1 convolution over a 1 x N map.

    torch runs float32 linear layers in MKL, which has half the speed of oneDNN there, and convolutions in oneDNN
    (docs/performance.md). Nothing is copied: tokens are such a map, channels last. Small inputs, compiled and exported
    graphs, and all other cases use the plain linear layer.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        if not self.by_convolution(input):
            return F.linear(input, self.weight, self.bias)
        x = input.reshape(1, 1, -1, self.in_features).permute(0, 3, 1, 2)  # (1, in, 1, N), channels last
        weight = self.weight.view(self.out_features, 1, 1, self.in_features).permute(0, 3, 1, 2)
        # dilation has no effect on a 1x1 kernel, but makes ATen use oneDNN on one thread too
        x = F.conv2d(x, weight, self.bias, dilation=2)
        return x.permute(0, 2, 3, 1).reshape(*input.shape[:-1], self.out_features)

    def by_convolution(self, x: Tensor) -> bool:
        """Whether the convolution is faster."""
        if (
            not SUITED or torch.compiler.is_compiling() or torch._C._get_tracing_state()
        ):  # a graph must not depend on sizes
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
"""Whether this CPU is of the kind on which the convolution was measured to be faster (docs/results/linear.md)."""
