"""A safetensors file of weights with its configuration in the metadata, read as untrusted input.

Nothing in it is run, imported or looked up elsewhere; sizes and shapes are compared before anything is allocated. The
digest detects damage, not forgery.
"""

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from safetensors import SafetensorError

from glocal.errors import GlocalError, first_line, short
from glocal.formatting import few
from glocal.models._config import CONFIG, FileError, json_object

WEIGHTS = "model.safetensors"
VERSION = "1"
MAX_HEADER = 8 * 2**20
"""Bytes of a header or a config.json: enough for 50,000 tensors or class names."""
_OURS = ("glocal", "config", "digest")  # of the metadata; a file has all of them or none
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip

TensorLayout = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Type and shape of each tensor, by its name."""


@dataclass(frozen=True)
class Header:
    """The header of a file, before its tensors.

    Attributes:
        config: the text of its configuration, not yet checked.
        digest: SHA-256 over configuration and tensors, as hex, not yet checked; None if glocal did not write the file.
        tensors: type, shape and offsets of each tensor, not yet checked.
        content: its bytes.
        file_size: bytes of the file.
    """

    config: str
    digest: str | None
    tensors: Mapping[str, Any]
    content: bytes
    file_size: int


# Reading.


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading.

    Raises:
        FileError: if there is none, or it is a pipe or a device.
    """
    if not path.exists():
        raise FileError("no such file or folder", "check the path")
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
        raise FileError(f"{path.name} is not a regular file", "check the path")
    return path.open("rb")


def read_header(file: BinaryIO, path: Path) -> Header:
    """The header of an open file, and the configuration in it or beside it.

    Raises:
        FileError: if it is damaged or too long, has no configuration, or a different one beside it.
    """
    if path.suffix != ".safetensors":
        raise FileError("expected a .safetensors file, got another", "`glocal convert` makes one of a .pth")
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or not 2 <= length <= size - 8:
        raise FileError("is damaged or not a safetensors file (incomplete header)")
    if length > MAX_HEADER:
        raise FileError(f"has a header of {length:,} bytes, the limit is {MAX_HEADER:,}")
    text = file.read(length)
    header = json_object(text, "its header")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise FileError("is damaged or not a safetensors file (its metadata is not an object)")
    config, digest = _config_of(metadata, path)
    return Header(config, digest, header, prefix + text, size)


def read_tensors(file: BinaryIO, header: Header, expected: TensorLayout, name: str) -> dict[str, torch.Tensor]:
    """The tensors that follow a header.

    Args:
        file: open, after its header.
        header: of the file.
        expected: the layout of the model that its configuration describes.
        name: of that model, for messages.

    Raises:
        FileError: if the layout differs, the digest does not match, or a weight is not finite.
    """
    _check_layout(name, expected, _layout_in(header.tensors))
    num_bytes = sum(dtype.itemsize * math.prod(shape) for dtype, shape in expected.values())
    whole = len(header.content) + num_bytes
    if header.file_size != whole:  # before it is read: the rest could be of any size
        raise FileError(f"expected {whole:,} bytes, got {header.file_size:,}: it is truncated or has trailing data")
    content = header.content + file.read(num_bytes)
    try:
        tensors = safetensors.torch.load(content)
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise FileError(f"is damaged or not a safetensors file ({first_line(error)})") from error
    del content
    # again: the library may parse an ambiguous header differently
    _check_layout(name, expected, layout_of(tensors))
    if header.digest is not None and header.digest != digest_of(header.config, tensors):
        raise FileError("has changed since it was written (its digest differs)", "use an intact copy, or save it again")
    if bad := first_not_finite(tensors):
        raise FileError(
            f"expected finite weights, got NaN or infinity in {bad}", "train it again with a lower learning rate"
        )
    return tensors


def _config_of(metadata: Mapping[str, Any], path: Path) -> tuple[str, str | None]:
    """The text of the configuration and the digest; None for a file that glocal did not write."""
    beside = path.with_name(CONFIG)
    present = [name for name in _OURS if name in metadata]
    if not present:
        if not beside.exists():
            raise FileError(f"does not name its model, and there is no {CONFIG} beside it", f"put its {CONFIG} there")
        return _read_config(beside), None
    if len(present) < len(_OURS) or not all(isinstance(metadata[name], str) for name in _OURS):
        raise FileError("is damaged (its metadata is incomplete)")
    if metadata["glocal"] != VERSION:
        raise FileError(f"expected version {VERSION} of the format, got {metadata['glocal'][:20]}", "update glocal")
    config = metadata["config"]
    # Only under the standard name: a folder may hold several models.
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
    with open_regular(path) as file:
        content = file.read(MAX_HEADER + 1)
    if len(content) > MAX_HEADER:
        raise FileError(f"the {CONFIG} beside it has more than {MAX_HEADER:,} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise FileError(f"the {CONFIG} beside it is not UTF-8") from None


# Layouts.


def layout_of(tensors: Mapping[str, torch.Tensor]) -> TensorLayout:
    """Type and shape of each tensor."""
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def layout_differences(expected: TensorLayout, got: TensorLayout) -> str:
    """Missing, unexpected and differing tensors, three at most; empty if none."""
    problems = [f"missing: {name}" for name in expected if name not in got]
    problems += [f"left over: {short(name)}" for name in got if name not in expected]
    problems += [
        f"{name}: expected {_form(layout)}, got {_form(got[name])}"
        for name, layout in expected.items()
        if name in got and got[name] != layout
    ]
    return few(problems, 3, "; ")


def _check_layout(name: str, expected: TensorLayout, got: TensorLayout) -> None:
    if problems := layout_differences(expected, got):
        raise FileError(f"is not of the {name} it describes ({problems})")


def _layout_in(tensors: Mapping[str, Any]) -> TensorLayout:
    """Type and shape of each tensor, from the header of a safetensors file."""
    layout = {}
    for name, entry in tensors.items():
        dtype, shape = (entry.get("dtype"), entry.get("shape")) if isinstance(entry, dict) else (None, None)
        if not isinstance(dtype, str) or not isinstance(shape, list) or not all(_is_length(n) for n in shape):
            raise FileError(f"is damaged (invalid header entry for {short(name)})")
        if dtype not in _DTYPES:
            raise FileError(f"{short(name)}: expected one of the types {', '.join(_DTYPES)}, got {short(dtype)}")
        layout[name] = _DTYPES[dtype], tuple(shape)
    return layout


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _form(layout: tuple[torch.dtype, tuple[int, ...]]) -> str:
    dtype, shape = layout
    return f"{str(dtype).removeprefix('torch.')} {short(list(shape))}"


# Writing.


def plain_tensors(tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Contiguous copies of tensors on the CPU.

    safetensors refuses tensors that share memory, and has no channels-last layout.
    """
    return {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors}


def serialise(tensors: Mapping[str, torch.Tensor], config: str) -> bytes:
    """A file of tensors, with its configuration and the digest over both; equal ones give equal bytes.

    Raises:
        GlocalError: if the header would be too long.
    """
    metadata = {"format": "pt", "glocal": VERSION, "config": config, "digest": digest_of(config, tensors)}
    # the library writes metadata in random order, so equal models would differ in bytes
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


def digest_of(config: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over the configuration and each tensor in the order of names: name, type, shape, bytes."""
    digest = hashlib.sha256(json.dumps(config).encode() + b"\n")
    for name, tensor in sorted(tensors.items()):
        form = [name, str(tensor.dtype), list(tensor.shape)]
        digest.update(json.dumps(form).encode() + b"\n")
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def first_not_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """The first tensor with NaN or infinity."""
    return next((n for n, t in tensors.items() if t.is_floating_point() and not bool(t.isfinite().all())), None)
