"""A file of weights with its configuration, as every command writes and reads it: classifiers, detectors, segmenters.

What a configuration may say, and the module it describes, is the business of who calls: `glocal.training.saved` for
classifiers. A file is untrusted: nothing in it is run, imported or looked up elsewhere, and shapes are compared before
anything is allocated. The digest tells damage, not forgery.
"""

import hashlib
import json
import math
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from glocal.errors import CheckpointError, GlocalError
from glocal.files import atomic_write_bytes, printable
from glocal.training.saved_config import AGAIN, CONFIG, FileError, first_line, is_int, json_object, short

WEIGHTS = "model.safetensors"
VERSION = "1"
MAX_HEADER = 8 * 2**20
"""Bytes of a header or a config.json: room for 50,000 tensors or class names; more would only be slow to refuse."""
_OURS = ("glocal", "config", "digest")  # of the metadata; a file has all of them or none
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip

Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Type and shape of each tensor, by its name."""


class Described(Protocol):
    """A configuration that has been checked."""

    @property
    def name(self) -> str:
        """Of the architecture."""
        ...


T = TypeVar("T")


class Form(NamedTuple):
    """How the configurations of one kind of models are read.

    Attributes:
        describe: text of a configuration and the number of tensors there are -> what it says, checked; or FileError.
        build: the module of it, with random weights; or FileError.
        maker: who makes the module from its keywords, for messages.
    """

    describe: Callable[[str, int], Any]
    build: Callable[[Any], nn.Module]
    maker: str


class Content(NamedTuple):
    """What a file holds: the checked configuration, the tensors, and the digest, None if glocal did not write it."""

    description: Any
    tensors: dict[str, torch.Tensor]
    digest: str | None


def write_model(model: nn.Module, folder: Path, config: str, form: Form) -> None:
    """Write weights and configuration; equal models give equal bytes.

    Raises:
        GlocalError: if a weight is not finite, or what is written could not be loaded again.
        OSError: if it cannot be written; the folder then has the model from before, or one without its config.json
            beside.
    """
    # cloned: safetensors refuses tensors that share memory, and layouts such as channels-last are not of the file
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    if name := _first_not_finite(tensors):
        raise GlocalError(f"model: expected finite weights, got NaN or infinity in {name}; it is not saved")
    try:
        description = form.describe(config, len(tensors))
        differences = _differences(_layout(_on_meta(description, form)), _layout_of(tensors))
    except FileError as error:
        raise GlocalError(f"model: cannot be saved so that it loads again: {error}") from error
    if differences:
        raise GlocalError(
            f"model: cannot be saved so that it loads again: it is not the {description.name} that {form.maker} makes "
            f"from its keywords ({_some(differences)}); give what it was made with as model_args"
        )
    metadata = {"format": "pt", "glocal": VERSION, "config": config, "digest": digest_of(config, tensors)}
    content = _serialised(tensors, metadata)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(folder / CONFIG, config.encode())
    atomic_write_bytes(folder / WEIGHTS, content)


def read_model(path: str | Path, form: Form, take: Callable[[Content], T]) -> T:
    """Read a file, or the one of a folder.

    Args:
        path: the .safetensors file, or the folder it is in: of a run, of one run of a comparison, of a checkpoint.
        form: of its configuration.
        take: makes of the content what the caller wants; a FileError of it is explained likewise.

    Raises:
        CheckpointError: if there is none, it is damaged, or it is not what its configuration says.
    """
    file = find_model(Path(path))
    try:
        return take(_read(file, form))
    except FileError as error:
        reason, advice = error.reason, error.advice
    except RecursionError:
        reason, advice = "its configuration is nested too deeply", AGAIN
    except OSError as error:
        reason, advice = f"cannot be read ({error.strerror or error})", "check the path and its permissions"
    except (MemoryError, torch.OutOfMemoryError):
        reason, advice = "does not fit into memory", "free some, or use another machine"
    raise CheckpointError(f"{printable(file)}: {printable(reason)}; {advice}")


def _on_meta(description: Described, form: Form) -> nn.Module:
    """The model without memory for its weights: their names, types and shapes."""
    with torch.device("meta"):
        return form.build(description)


# Where the file is.


def find_model(path: Path) -> Path:
    """The file of a folder, or the file that is named.

    Raises:
        CheckpointError: for a folder without one, or with several.
    """
    if not path.is_dir():
        return path
    if (path / WEIGHTS).exists():
        return path / WEIGHTS
    found = [
        file.parent for pattern in ("runs/*", "checkpoints/*") for file in sorted(path.glob(f"{pattern}/{WEIGHTS}"))
    ]
    if found:
        names = "".join(f"\n  {printable(folder)}" for folder in found[:20])
        more = f"\n  and {len(found) - 20} more" if len(found) > 20 else ""
        raise CheckpointError(
            f"{printable(path)}: expected one model, got a folder of {len(found)}; choose one:{names}{more}"
        )
    raise CheckpointError(
        f"{printable(path)}: expected a folder with {WEIGHTS}, got one without; give the folder of a run or the file"
    )


def _read(path: Path, form: Form) -> Content:
    with _open(path) as file:
        if path.suffix != ".safetensors":
            raise FileError("expected a .safetensors file, got another", "`glocal convert` makes one of a .pth")
        size = os.fstat(file.fileno()).st_size
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or not 2 <= length <= size - 8:
            raise FileError("is damaged or no safetensors file (no whole header)")
        if length > MAX_HEADER:
            raise FileError(f"has a header of {length:,} bytes, the limit is {MAX_HEADER:,}")
        text = file.read(length)
        header = json_object(text, "its header")
        metadata = header.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict):
            raise FileError("is damaged or no safetensors file (its metadata is no object)")
        config, digest = _config_of(metadata, path)
        description = form.describe(config, len(header))
        expected = _layout(_on_meta(description, form))
        _refuse(description.name, _differences(expected, _layout_in(header)))
        num_bytes = sum(dtype.itemsize * math.prod(shape) for dtype, shape in expected.values())
        if size != 8 + length + num_bytes:  # before it is read: the rest could be of any size
            raise FileError(
                f"expected {8 + length + num_bytes:,} bytes, got {size:,}: it is cut off or has something after its end"
            )
        content = prefix + text + file.read(num_bytes)
    try:
        tensors = safetensors.torch.load(content)
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise FileError(f"is damaged or no safetensors file ({first_line(error)})") from error
    del content
    # again, for the library may read an ambiguous header in another way than we did
    _refuse(description.name, _differences(expected, _layout_of(tensors)))
    if digest is not None and digest != digest_of(config, tensors):
        raise FileError(
            "has changed since it was written (its digest differs)", "take a copy that is whole, or save it again"
        )
    if name := _first_not_finite(tensors):
        raise FileError(
            f"expected finite weights, got NaN or infinity in {name}", "train it again with a lower learning rate"
        )
    return Content(description, tensors, digest)


def _config_of(metadata: Mapping[str, Any], path: Path) -> tuple[str, str | None]:
    """The text of the configuration and the digest; None for a file that glocal did not write."""
    beside = path.with_name(CONFIG)
    present = [name for name in _OURS if name in metadata]
    if not present:
        if not beside.exists():
            raise FileError(
                f"does not say which model it is of, and no {CONFIG} is beside it", f"put its {CONFIG} there"
            )
        return _read_config(beside), None
    if len(present) < len(_OURS) or not all(isinstance(metadata[name], str) for name in _OURS):
        raise FileError("is damaged (its metadata is not complete)")
    if metadata["glocal"] != VERSION:
        raise FileError(f"expected version {VERSION} of the format, got {metadata['glocal'][:20]}", "update glocal")
    config = metadata["config"]
    # Only where the name says that the two belong together: a model may lie in a folder with others.
    if (
        path.name == WEIGHTS
        and beside.exists()
        and json_object(_read_config(beside), CONFIG) != json_object(config, "its configuration")
    ):
        raise FileError(
            f"the {CONFIG} beside it is not the one it was written with",
            f"delete that {CONFIG}, or save the model again",
        )
    return config, metadata["digest"]


def _read_config(path: Path) -> str:
    with _open(path) as file:
        content = file.read(MAX_HEADER + 1)
    if len(content) > MAX_HEADER:
        raise FileError(f"the {CONFIG} beside it has more than {MAX_HEADER:,} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise FileError(f"the {CONFIG} beside it is no UTF-8 text") from None


def _open(path: Path) -> BinaryIO:
    if not path.exists():
        raise FileError("no such file or folder", "check the path")
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
        raise FileError(f"{path.name} is no regular file", "check the path")
    return path.open("rb")


# Tensors.


def _layout(model: nn.Module) -> Layout:
    return _layout_of(model.state_dict())


def _layout_of(tensors: Mapping[str, torch.Tensor]) -> Layout:
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def _layout_in(header: Mapping[str, Any]) -> Layout:
    """What the header of a safetensors file says of its tensors."""
    layout = {}
    for name, entry in header.items():
        dtype, shape = (entry.get("dtype"), entry.get("shape")) if isinstance(entry, dict) else (None, None)
        if not (isinstance(dtype, str) and isinstance(shape, list) and all(is_int(n) and n >= 0 for n in shape)):
            raise FileError(f"is damaged (its header says nothing sensible of {short(name)})")
        if dtype not in _DTYPES:
            raise FileError(f"{short(name)}: expected one of the types {', '.join(_DTYPES)}, got {short(dtype)}")
        layout[name] = _DTYPES[dtype], tuple(shape)
    return layout


def _differences(expected: Layout, got: Layout) -> list[str]:
    problems = [f"missing: {name}" for name in expected if name not in got]
    problems += [f"left over: {short(name)}" for name in got if name not in expected]
    problems += [
        f"{name}: expected {_form(layout)}, got {_form(got[name])}"
        for name, layout in expected.items()
        if name in got and got[name] != layout
    ]
    return problems


def _refuse(architecture: str, differences: list[str]) -> None:
    if differences:
        raise FileError(f"is not of the {architecture} it describes ({_some(differences)})")


def _form(layout: tuple[torch.dtype, tuple[int, ...]]) -> str:
    dtype, shape = layout
    return f"{str(dtype).removeprefix('torch.')} {short(list(shape))}"


def _first_not_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    return next((n for n, t in tensors.items() if t.is_floating_point() and not bool(t.isfinite().all())), None)


def digest_of(config: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over the configuration and each tensor in the order of names: name, type, shape, bytes."""
    digest = hashlib.sha256(json.dumps(config).encode() + b"\n")
    for name, tensor in sorted(tensors.items()):
        form = [name, str(tensor.dtype), list(tensor.shape)]
        digest.update(json.dumps(form).encode() + b"\n")
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _serialised(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file; the library writes metadata in random order, which would make equal models unequal files."""
    content = safetensors.torch.save(dict(tensors))
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(
        {"__metadata__": metadata, **json.loads(content[8 : 8 + length])}, separators=(",", ":")
    ).encode()
    header += b" " * (-len(header) % 8)  # tensors begin at multiples of 8
    if len(header) > MAX_HEADER:
        raise GlocalError(
            f"model: expected names of classes and tensors of {MAX_HEADER:,} bytes at most, got {len(header):,}"
        )
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def _some(items: Iterable[str]) -> str:
    items = list(items)
    return "; ".join(items[:3]) + (f"; and {len(items) - 3} more" if len(items) > 3 else "")
