"""Read a checkpoint file without running what is in it."""

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
    """A checkpoint as its file has it: safetensors, or what `torch.save` wrote, of tensors and plain values alone.

    Raises:
        CheckpointError: if there is no such file, it is damaged, holds objects that only running code would make, or no
            state dict.
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
        raise CheckpointError(f"checkpoint: {path} cannot be read ({error.strerror or error})") from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError, IndexError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"checkpoint: {path} is damaged or no checkpoint ({reason})") from error
    except Exception as error:  # pickle.UnpicklingError, and what a mangled pickle makes of itself
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            raise CheckpointError(
                f"checkpoint: {path} holds more than tensors and plain values, so reading it could run code from it. "
                "If you trust it, read it where that may happen and save its state dict alone as .safetensors."
            ) from error
        raise CheckpointError(f"checkpoint: {path} is damaged or no checkpoint ({type(error).__name__})") from error
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(f"checkpoint: expected a state dict in {path}, got {type(checkpoint).__name__}")
    return dict(checkpoint)
