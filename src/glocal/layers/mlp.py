"""What the MLPs of the families need beside timm's."""

import torch.nn.functional as F
from torch import Tensor, nn


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x) (Hendrycks & Gimpel 2016, §2), written as silu(1.702 x) / 1.702.

    Equal, with one tensor less to write and, in training, one less to keep. Takes the arguments of activations.
    """

    def __init__(self, inplace: bool = False):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        return F.silu(1.702 * x).mul_(1 / 1.702)
