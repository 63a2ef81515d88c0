"""Extract a state dict from the checkpoint of a training script."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from glocal.errors import GlocalError

WRAPPERS = ("state_dict", "model", "state_dict_ema", "model_ema")


def unwrap(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, without the outer dict and the ``module.`` of DataParallel."""
    for key in WRAPPERS:
        if isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
            break
    if not checkpoint or not all(isinstance(tensor, Tensor) for tensor in checkpoint.values()):
        other = next((f"{name}: {type(x).__name__}" for name, x in checkpoint.items() if not isinstance(x, Tensor)), "")
        raise GlocalError(f"checkpoint: expected tensors by name, got {other or 'nothing'}")
    return {name.removeprefix("module."): tensor for name, tensor in checkpoint.items()}


def rename(state_dict: Mapping[str, Tensor], rules: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """Rename tensors: every (pattern, replacement) is applied to every name, in order."""
    renamed = {}
    for name, tensor in state_dict.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed
