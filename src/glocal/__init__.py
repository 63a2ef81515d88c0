"""Vision backbones that join local aggregation (convolution) and global aggregation (self-attention).

``import glocal`` registers every model with timm; ``timm.create_model("botnet50")`` and every tool that takes a timm
model then take ours. It is quick, silent and downloads nothing: torch and timm are imported at the first use.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from glocal._timm_hook import register_with_timm
from glocal.version import __version__

if TYPE_CHECKING:
    from glocal.models import convert_checkpoint, create_model, insert_attention, list_models, optimize

__all__ = ["__version__", "convert_checkpoint", "create_model", "insert_attention", "list_models", "optimize"]

_SUBMODULES = frozenset(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def __getattr__(name: str) -> Any:
    """Import a submodule, or one of the public functions, at its first use (PEP 562)."""
    if name in _SUBMODULES:
        return importlib.import_module(f"glocal.{name}")
    if name in __all__:
        return getattr(importlib.import_module("glocal.models"), name)
    raise AttributeError(f"module 'glocal' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_SUBMODULES})


register_with_timm()
