"""Load exported files as modules.

Files are untrusted. An .onnx or .xml holds operators and numbers. A .pt2 can execute code: torch evaluates text in it
and unpickles, and aoti is machine code; it is loaded only with ``trust``.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from glocal.errors import CheckpointError, GlocalError, check_choice, first_line
from glocal.export.description import RUNTIMES, STEP, Description, InvalidFileError, Runtime
from glocal.export.reading import read_file
from glocal.export.runtimes import LOADERS, RUNTIMES_BY_SUFFIX, Run, of_module
from glocal.files import printable
from glocal.models.io import load_model


class ExportedModel(nn.Module):
    """An exported model in a runtime on the CPU: (B, 3, H, W) float32 normalised images -> (B, K) float32 logits.

    Any B: for a fixed batch size the images are split into batches, the last one padded.

    Attributes:
        path: of the file.
        runtime: of the model.
        description: metadata of the file.
        identity: SHA-256 of the file, as hex.
        name: the model's architecture.
        classes: the K class names, in the order of the logits.
        image_size: side in pixels; (height, width) if they differ.
        crop_pct: see `glocal.data.transforms.resize_crop`.
        interpolation: see `glocal.data.transforms.resize_crop`.
        mean: by channel, of pixels in [0, 1].
        std: by channel, of pixels in [0, 1].
    """

    def __init__(
        self, path: Path, runtime: Runtime, description: Description, identity: str, run: Run, again: tuple[Any, ...]
    ) -> None:
        super().__init__()
        self.path, self.runtime, self.description, self.identity = path, runtime, description, identity
        self._run, self._again = run, again
        self.name, self.classes = description.name, description.classes
        height, width = description.image_size
        self.image_size: int | tuple[int, int] = height if height == width else (height, width)
        self.crop_pct, self.interpolation = description.crop_pct, description.interpolation
        self.mean, self.std = description.mean, description.std

    @property
    def model(self) -> "ExportedModel":
        """Itself, as in `SavedModel`."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Other processes reload the file."""
        return load_exported, self._again

    def forward(self, images: Tensor) -> Tensor:
        """The logits.

        Raises:
            GlocalError: if the images do not fit, or the runtime fails.
        """
        self._check(images)
        pixels = np.ascontiguousarray(images.detach().cpu().numpy())
        size = self.description.batch_size if "batch" not in self.description.dynamic else max(len(pixels), 1)
        logits = [self._logits(pixels[start : start + size], size) for start in range(0, len(pixels), size)]
        return torch.from_numpy(np.concatenate([np.empty((0, len(self.classes)), np.float32), *logits]))

    def _logits(self, pixels: np.ndarray, batch_size: int) -> np.ndarray:
        count = len(pixels)
        if count < batch_size:
            pixels = np.concatenate([pixels, np.zeros((batch_size - count, *pixels.shape[1:]), np.float32)])
        try:
            logits = self._run(pixels)
        except Exception as error:  # the runtimes' errors have no common base
            raise GlocalError(f"{printable(self.path)}: {self.runtime} failed ({first_line(error)})") from error
        expected = batch_size, len(self.classes)
        if logits.shape != expected or logits.dtype != np.float32:
            raise GlocalError(
                f"{printable(self.path)}: expected float32 logits {expected} from it, got {logits.dtype} "
                f"{logits.shape}; export it again"
            )
        return logits[:count]

    def _check(self, images: Tensor) -> None:
        own, is_free = self.description.image_size, "size" in self.description.dynamic
        if not (
            images.ndim == 4
            and images.shape[1] == 3
            and images.dtype == torch.float32
            and (images.shape[2:] == own or (is_free and not any(side % STEP for side in images.shape[2:])))
        ):
            sides = f"multiples of {STEP} as H and W" if is_free else f"H and W {own}"
            raise GlocalError(
                f"images: expected float32 (B, 3, H, W) with {sides} for {printable(self.path)}, got "
                f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
            )


def load_exported(
    path: str | Path, runtime: Runtime | None = None, threads: int | None = None, trust: bool = False
) -> ExportedModel:
    """Read an exported file.

    Args:
        path: .onnx, .xml (OpenVINO), .pt2 (torch), or a model for `glocal.models.io.load_model`.
        runtime: ``onnxruntime``, ``openvino`` or ``torch``; by default the one for the suffix.
        threads: of the runtime; by default torch's.
        trust: allow a .pt2, which can execute code.

    Raises:
        CheckpointError: if it is missing, damaged, does not match its suffix, or was not written by glocal.
        GlocalError: if the runtime does not support the file, or is not installed.
    """
    path = Path(path)
    runtime, threads = runtime_for(path, runtime), threads or torch.get_num_threads()
    again = os.fspath(path), runtime, threads, trust
    if path.suffix == ".pt2" and not trust:
        raise GlocalError(
            f"{printable(path)}: loading a .pt2 can execute code from it. If you trust its source, add --trust "
            "(from Python trust=True); .onnx and .xml need no trust"
        )
    try:
        if path.is_dir() or path.suffix == ".safetensors":
            return _plain(path, threads, again)
        file = read_file(path)
        run = LOADERS[runtime](file, threads)
    except InvalidFileError as error:
        raise CheckpointError(f"{printable(path)}: {printable(error.reason)}; {printable(error.advice)}") from None
    except OSError as error:
        raise CheckpointError(
            f"{printable(path)}: unreadable ({error.strerror or error}); check the path and its permissions"
        ) from error
    return ExportedModel(path, runtime, file.description, file.digest, run, again)


def runtime_for(path: Path, runtime: Runtime | None = None) -> Runtime:
    """The runtime for a file.

    Raises:
        GlocalError: if the runtime does not support the file.
    """
    taken = RUNTIMES_BY_SUFFIX.get(".safetensors" if path.is_dir() else path.suffix)
    if taken is None:
        raise CheckpointError(
            f"{printable(path)}: expected a folder or a file of {', '.join(RUNTIMES_BY_SUFFIX)}, got another"
        )
    if runtime is None:
        return taken[0]
    check_choice("runtime", runtime, RUNTIMES)
    if runtime not in taken:
        raise GlocalError(
            f"runtime: expected {' or '.join(taken)} for {printable(path)}, got {runtime}; `glocal export` writes "
            "files for the others"
        )
    return runtime


def _plain(path: Path, threads: int, again: tuple[Any, ...]) -> ExportedModel:
    saved = load_model(path, "classification")
    size = saved.image_size
    description = Description(
        format="safetensors",
        name=saved.name,
        classes=saved.classes,
        image_size=(size, size),
        crop_pct=saved.crop_pct,
        interpolation="bicubic",
        mean=saved.mean,
        std=saved.std,
        dynamic=("batch",),
    )
    return ExportedModel(path, "torch", description, saved.identity, of_module(saved.model, threads), again)
