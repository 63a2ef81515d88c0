"""Atomic checkpoints: a folder of safetensors and JSON, with digests (`glocal.run_dir`).

    step-00001234/model.safetensors    the evaluated weights, or their average
    step-00001234/optim.safetensors    every other tensor, such as the optimizer's
    step-00001234/state.json           everything except tensors
    step-00001234/MANIFEST.json        size and SHA-256 of each file beside it; written last

The folder is written under a temporary name, every file and the folder itself are synced to disk, and then it is
renamed. It contains no pickle, and none is read.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from glocal.errors import CheckpointError
from glocal.files import printable, sha256, sync
from glocal.run_dir import remove, replacing
from glocal.training.errors import TrainingError

FORMAT = "glocal.checkpoint/1"
MANIFEST, MODEL, OPTIM, STATE = "MANIFEST.json", "model.safetensors", "optim.safetensors", "state.json"
_STEP = re.compile(r"step-(\d{8,})")
_TENSOR, _ITEMS, _TUPLE, _FLOAT = "__tensor__", "__items__", "__tuple__", "__float__"


def save_checkpoint(
    path: str | os.PathLike,
    checkpoint: Mapping[str, Any],
    texts: Mapping[str, str] | None = None,
    write_model: Callable[[Path, dict[str, torch.Tensor]], None] | None = None,
) -> None:
    """Write a nested dictionary of tensors and plain values as a folder.

    Args:
        path: the folder; an existing one is replaced.
        checkpoint: with the model's tensors under ``state_dict``.
        texts: further files, by name.
        write_model: writes the entry ``state_dict`` into a folder as ``model.safetensors``, and what belongs to it.

    Raises:
        CheckpointError: for a non-finite value; nothing is written.
        OSError: if it cannot be written; an existing folder is kept.
    """
    path = Path(path)
    tensors: dict[str, torch.Tensor] = {}
    state = _without_tensors({k: v for k, v in checkpoint.items() if k != "state_dict"}, "", tensors)
    model = dict(checkpoint.get("state_dict", {}))
    for name, tensor in (model | tensors).items():
        if not name.startswith("/callbacks/") and not all_finite(tensor):  # those of Lightning start at infinity
            raise CheckpointError(f"{path}: not written, as {name} is not finite")
    try:
        with replacing(path) as folder:
            (write_model or _write_model)(folder, model)
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, folder / OPTIM)
            (folder / STATE).write_text(json.dumps(state, allow_nan=False), encoding="utf-8")
            shutil.copymode(folder / STATE, folder / OPTIM)  # safetensors makes files readable by the user only
            for name, text in (texts or {}).items():
                (folder / name).write_text(text, encoding="utf-8")
            written = sorted(folder.iterdir())
            files = {file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in written}
            manifest = json.dumps({"format": FORMAT, "files": files}, indent=1)
            (folder / MANIFEST).write_text(manifest, encoding="utf-8")
    except SafetensorError as error:  # a full disk, as safetensors gives it
        raise OSError(str(error)) from error


def load_checkpoint(path: str | os.PathLike, device: Any = "cpu") -> dict[str, Any]:
    """Read a folder of `save_checkpoint`; every byte is verified.

    Raises:
        CheckpointError: if a file is missing or has changed; the message names it.
    """
    path = Path(path)
    check(path)
    try:
        tensors = load_file(path / OPTIM, device=str(device))
        state = _with_tensors(json.loads((path / STATE).read_text(encoding="utf-8")), tensors)
        if "pace" in state:  # as the state of a run was called before
            state["train_state"] = state.pop("pace")
        return {**state, "state_dict": load_file(path / MODEL, device=str(device))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, RecursionError) as error:
        raise CheckpointError(
            f"{printable(path)}: not a checkpoint of glocal ({type(error).__name__}); take an older one"
        ) from error


def check(path: Path) -> None:
    """Compare a checkpoint's files with its manifest.

    Raises:
        CheckpointError: naming the first file that is missing, added or changed.
    """
    manifest = path / MANIFEST
    if manifest.is_symlink() or (manifest.exists() and not manifest.is_file()):  # who reads a pipe waits
        raise CheckpointError(f"{printable(manifest)}: not a regular file")
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise CheckpointError(f"{printable(manifest)}: expected {FORMAT}, got {content['format']!r}")
        files = {str(name): (int(of["bytes"]), str(of["sha256"])) for name, of in content["files"].items()}
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{printable(manifest)}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{printable(manifest)}: damaged ({type(error).__name__})") from error
    there = {file.name for file in path.iterdir()} - {MANIFEST}
    for name in sorted(there ^ set(files)):
        if Path(name).name != name:
            raise CheckpointError(f"{printable(manifest)}: damaged (lists {printable(name)!r})")
        what = f"missing, though in {MANIFEST}" if name in files else f"not in the manifest, {MANIFEST}"
        raise CheckpointError(f"{printable(path / name)}: {what}")
    for name in (MODEL, OPTIM, STATE):
        if name not in files:
            raise CheckpointError(f"{printable(manifest)}: does not list {name}")
    for name, (size, digest) in files.items():
        file = path / name
        try:
            if file.is_symlink() or not file.is_file():
                raise CheckpointError(f"{printable(file)}: not a regular file")
            found = file.stat().st_size
            if found != size:
                raise CheckpointError(f"{printable(file)}: has {found} bytes, {size} in {MANIFEST}")
            if sha256(file) != digest:
                raise CheckpointError(
                    f"{printable(file)}: its content has changed since it was written, or {MANIFEST} has"
                )
        except OSError as error:
            raise CheckpointError(f"{printable(file)}: cannot be read ({error.strerror})") from error


class Checkpointer:
    """The checkpoints of a run: the newest few and the best.

    Args:
        folder: of the checkpoints.
        write_model: see `save_checkpoint`.
        keep: how many of the newest are kept, beside the best.
        about: description of the run, as JSON.
        texts: written beside each, by file name.
    """

    def __init__(
        self,
        folder: Path,
        write_model: Callable[[Path, dict[str, torch.Tensor]], None] | None = None,
        *,
        keep: int = 2,
        about: Mapping[str, Any] | None = None,
        texts: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.write_model, self.keep = folder, write_model, keep
        self.about, self.texts = dict(about or {}), dict(texts or {})
        self.newest: Path | None = None

    def steps(self) -> list[int]:
        """Steps with a checkpoint, intact or not, newest first."""
        if not self.folder.is_dir():
            return []
        found = (_STEP.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def path(self, step: int) -> Path:
        """The folder of a step."""
        return self.folder / f"step-{step:08d}"

    def save(self, step: int, checkpoint: Mapping[str, Any], best: int | None) -> None:
        """Write the checkpoint of a step, then delete those that are no longer needed.

        Raises:
            TrainingError: if it cannot be written, or a tensor is not finite.
        """
        try:
            if not self.folder.is_dir():
                self.folder.mkdir(parents=True)
                sync(self.folder.parent)
            save_checkpoint(self.path(step), {**checkpoint, "about": self.about}, self.texts, self.write_model)
            self.prune(step, best)
        except CheckpointError as error:
            raise TrainingError(f"{error}; a lower lr may help{self.last_good()}") from error
        except OSError as error:
            free = shutil.disk_usage(self.folder).free
            raise TrainingError(
                f"cannot write a checkpoint to {self.folder} ({error.strerror or error}; {free / 2**20:,.0f} MiB "
                f"free); free some space and resume with --resume{self.last_good()}"
            ) from error

    def last_good(self) -> str:
        """Where the newest checkpoint is, for an error's message."""
        return f"; the last good state is {self.newest}" if self.newest else ""

    def prune(self, step: int, best: int | None) -> None:
        """Delete older checkpoints that a new one replaces.

        This includes damaged ones of a later step, if training resumed from before them.
        """
        kept = {*[of for of in self.steps() if of <= step][: self.keep], best}
        for old in self.steps():
            if old not in kept:
                remove(self.path(old))

    def load_newest(self, tell: Callable[[str], None]) -> tuple[int, dict[str, Any]] | None:
        """The newest intact checkpoint; ``tell`` gets a message for each damaged one.

        Raises:
            CheckpointError: if all checkpoints are damaged.
        """
        steps = self.steps()
        for step in steps:
            try:
                checkpoint = load_checkpoint(self.path(step))
                if (found := checkpoint.get("train_state", {}).get("step", step)) != step:
                    raise CheckpointError(
                        f"{printable(self.path(step))}: expected the step of its name, got step {found}"
                    )
                self.newest = self.path(step)
                return step, checkpoint
            except CheckpointError as error:
                tell(f"{error}; falling back to the previous checkpoint")
        if steps:
            raise CheckpointError(
                f"{printable(self.folder)}: all {len(steps)} checkpoints are damaged; start a new run"
            )
        return None


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether no value is infinite or NaN; integers never are."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    low, high = torch.aminmax(tensor.detach())  # NaN if there is one; a twentieth of the time of isfinite, no copy
    return math.isfinite(low.item()) and math.isfinite(high.item())


def _write_model(folder: Path, state_dict: dict[str, torch.Tensor]) -> None:
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state_dict.items()}, folder / MODEL)


def _without_tensors(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """A tree as JSON: tensors are moved into ``tensors`` and replaced by their names."""
    match value:
        case torch.Tensor():
            tensors[name] = value
            return {_TENSOR: name}
        case dict() if all(isinstance(key, str) for key in value) and not _marked(value):
            return {key: _without_tensors(of, f"{name}/{key}", tensors) for key, of in value.items()}
        case dict():
            items = enumerate(value.items())
            return {_ITEMS: [[key, _without_tensors(of, f"{name}/{i}", tensors)] for i, (key, of) in items]}
        case list():
            return [_without_tensors(of, f"{name}/{i}", tensors) for i, of in enumerate(value)]
        case tuple():
            return {_TUPLE: [_without_tensors(of, f"{name}/{i}", tensors) for i, of in enumerate(value)]}
        case float() if not math.isfinite(value):
            return {_FLOAT: str(value)}
        case bool() | int() | float() | str() | None:
            return value
        case _:
            raise TypeError(f"{name}: a checkpoint holds tensors and plain values, not {type(value).__name__}")


def _with_tensors(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    match value:
        case {"__tensor__": name}:
            return tensors[name]
        case {"__items__": list(items)}:
            return {key: _with_tensors(of, tensors) for key, of in items}
        case {"__tuple__": list(items)}:
            return tuple(_with_tensors(of, tensors) for of in items)
        case {"__float__": str(text)}:
            return float(text)
        case dict():
            return {key: _with_tensors(of, tensors) for key, of in value.items()}
        case list():
            return [_with_tensors(of, tensors) for of in value]
    return value


def _marked(value: Mapping[str, Any]) -> bool:
    return any(key in value for key in (_TENSOR, _ITEMS, _TUPLE, _FLOAT))
