"""Vision backbones that join local aggregation (convolution) and global aggregation (self-attention).

``import glocal`` registers every model with timm; ``timm.create_model("botnet50")`` and every tool that takes a timm
model then take ours. It is quick, silent and downloads nothing: torch and timm are imported at the first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from glocal._timm_hook import register_with_timm

if TYPE_CHECKING:
    from glocal.models import convert_checkpoint, create_model, insert_attention, list_models, optimize

__version__ = "0.1.0"
__all__ = ["__version__", "convert_checkpoint", "create_model", "insert_attention", "list_models", "optimize"]

_ROOMS = frozenset(
    "bench checkpoints cli comparison data errors export heads inference layers models report training".split()  # noqa: SIM905
)


def __getattr__(name: str) -> Any:
    """Import a subpackage, or one of the public functions, at its first use (PEP 562)."""
    if name in _ROOMS:
        return importlib.import_module(f"glocal.{name}")
    if name in __all__:
        return getattr(importlib.import_module("glocal.models"), name)
    raise AttributeError(f"module 'glocal' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_ROOMS})


register_with_timm()
