"""ResNet checkpoints: torchvision's and timm's names are ours, so both directions are the identity."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from glocal.checkpoints.unwrap import unwrap


def to_glocal(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Timm's or torchvision's ResNet -> `glocal_resnet*`; a checkpoint of our own passes through."""
    return unwrap(checkpoint)
