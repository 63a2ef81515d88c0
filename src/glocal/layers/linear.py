"""Linear layers, which on a CPU go where their products are quickest."""

import platform

import torch
import torch.nn.functional as F
from torch import Tensor, nn

X86 = platform.machine().lower() in ("x86_64", "amd64")
MANY_VALUES = 32768
"""Of an input: ATen gives those of up to 20480 to another, slow routine."""
MANY_TOKENS = 128
"""Below, laying out the weights for the product takes longer than it saves."""


class Linear(nn.Linear):
    """`torch.nn.Linear`, in float32 on an x86 processor as the equal 1x1 convolution over a map as wide as all tokens.

    torch gives linear layers to MKL, which has half the speed of oneDNN on processors of AMD and the same on Intel's,
    and convolutions to oneDNN: docs/performance.md has the figures. Nothing is copied: a row of tokens is such a map,
    channels last. Compiled and exported graphs, small inputs and everything else have the linear layer as it is.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        if not _by_convolution(input):
            return F.linear(input, self.weight, self.bias)
        x = input.reshape(1, 1, -1, self.in_features).permute(0, 3, 1, 2)  # (1, in, 1, N), channels last
        weight = self.weight.view(self.out_features, 1, 1, self.in_features).permute(0, 3, 1, 2)
        # one pixel cannot be dilated; that it is asked for takes ATen to oneDNN on one thread too
        x = F.conv2d(x, weight, self.bias, dilation=2)
        return x.permute(0, 2, 3, 1).reshape(*input.shape[:-1], self.out_features)


def _by_convolution(x: Tensor) -> bool:
    return (
        X86
        and not (torch.compiler.is_compiling() or torch.jit.is_tracing())  # first: a graph must not ask for sizes
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.numel() > MANY_VALUES
        and x.numel() >= MANY_TOKENS * x.shape[-1]
        and torch.backends.mkldnn.enabled
    )
