"""ResNet checkpoints: torchvision's and timm's names are ours; Hugging Face's are renamed."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from glocal.checkpoints.unwrap import rename, unwrap

# transformers.ResNetForImageClassification -> glocal
HUGGING_FACE = (
    (r"^resnet\.embedder\.embedder\.convolution\.", "conv1."),
    (r"^resnet\.embedder\.embedder\.normalization\.", "bn1."),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
    (r"^classifier\.1\.", "fc."),
)


def to_glocal(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Timm's, torchvision's or Hugging Face's ResNet -> `glocal_resnet*`; a checkpoint of our own passes through."""
    state_dict = unwrap(checkpoint)
    if not any(name.startswith("resnet.") for name in state_dict):
        return state_dict
    return {_counted_from_1(name): tensor for name, tensor in rename(state_dict, HUGGING_FACE).items()}


def _counted_from_1(name: str) -> str:
    name = re.sub(r"^resnet\.encoder\.stages\.(\d+)\.layers\.", lambda m: f"layer{int(m[1]) + 1}.", name)
    name = re.sub(r"\.layer\.(\d+)\.convolution\.", lambda m: f".conv{int(m[1]) + 1}.", name)
    return re.sub(r"\.layer\.(\d+)\.normalization\.", lambda m: f".bn{int(m[1]) + 1}.", name)
