"""Read a checkpoint file without executing code from it."""

import argparse
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from glocal.errors import CheckpointError


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint: safetensors, or a `torch.save` file of tensors and plain values.

    Raises:
        CheckpointError: if it is missing, damaged, holds objects that need code execution, or is not a state dict.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        # a Namespace holds the options of a training script: plain values
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the version of the pickle
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint: no file {path}") from None
    except OSError as error:
        raise CheckpointError(f"checkpoint: {path} is unreadable ({error.strerror or error})") from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError, IndexError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"checkpoint: {path} is damaged or not a checkpoint ({reason})") from error
    except Exception as error:  # pickle.UnpicklingError, and others from a damaged pickle
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            raise CheckpointError(
                f"checkpoint: {path} holds more than tensors and plain values, so loading it could execute code. "
                "If you trust it, load it in a sandbox and save its state dict as .safetensors"
            ) from error
        raise CheckpointError(f"checkpoint: {path} is damaged or not a checkpoint ({type(error).__name__})") from error
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(f"checkpoint: expected a state dict in {path}, got {type(checkpoint).__name__}")
    return dict(checkpoint)
