"""Take a state dict out of what training scripts put around it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

WRAPPERS = ("state_dict", "model", "state_dict_ema", "model_ema")


def unwrap(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, without the outer dict and the ``module.`` of DataParallel."""
    for key in WRAPPERS:
        if isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
            break
    return {name.removeprefix("module."): tensor for name, tensor in checkpoint.items()}
