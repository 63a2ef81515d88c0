"""Read and check exported files, which may be damaged or malicious. Nothing in them is executed here.

Beside an .onnx or .xml only its known companion is read, and a digest detects damage, not forgery. A .pt2 has its own
checksums.
"""

import hashlib
import html
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from glocal.export.description import KEY, MAX_TEXT, Description, InvalidFileError
from glocal.export.formats import ENDS, INSIDE, companion, digest_of, require
from glocal.files import sha256

NOT_OURS = "was not written by `glocal export`, or is damaged (it has no preprocessing metadata)"
AGAIN = "create one with `glocal export`"


class File(NamedTuple):
    """A checked file.

    Attributes:
        path: of the file.
        content: its bytes; empty for a .pt2.
        description: its metadata.
        is_alone: whether it has no companion file.
        digest: SHA-256 of the file, in hex.
    """

    path: Path
    content: bytes
    description: Description
    is_alone: bool
    digest: str


def read_file(path: Path) -> File:
    """Read and check a file.

    Raises:
        InvalidFileError: if it is missing, damaged, does not match its suffix, or refers to other files.
        OSError: if it is unreadable.
    """
    if not path.exists():
        raise InvalidFileError("no such file", "check the path")
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
        raise InvalidFileError("is not a regular file", "check the path")
    if path.suffix == ".pt2":
        description = _describe(_text_of_package(path), path)
        return File(path, b"", description, True, sha256(path))
    content = path.read_bytes()
    text, places = _text_of_xml(content) if path.suffix == ".xml" else _text_of_onnx(content)
    description = _describe(text, path)
    side = companion(path)
    assert side is not None
    places = {side.name} if path.suffix == ".xml" else places
    if outside := sorted(places - {side.name}):
        raise InvalidFileError(f"refers to {outside[0]!r}, which is not its companion file", "use another file")
    if places and not (side.exists() and stat.S_ISREG(side.stat(follow_symlinks=False).st_mode)):
        raise InvalidFileError(f"its weights are not beside it: {side.name}", "put that file there")
    if digest_of(content, side if places else None, description.digest) != description.digest:
        raise InvalidFileError("it or its companion has changed since it was written (its digest differs)")
    return File(path, content, description, not places, hashlib.sha256(content).hexdigest())


def _describe(text: str | bytes, path: Path) -> Description:
    description = Description.of(text)
    if ENDS[description.format] != path.suffix:
        raise InvalidFileError(f"has the format {description.format}, whose suffix is {ENDS[description.format]}")
    return description


def _text_of_onnx(content: bytes) -> tuple[str, set[str]]:
    """The description, and the files that hold weights."""
    try:
        proto = require("onnx").load_model_from_string(content)
    except RuntimeError as error:
        raise InvalidFileError("is damaged or not ONNX") from error
    except Exception as error:
        if type(error).__name__ != "DecodeError":  # protobuf's, wherever it comes from
            raise
        raise InvalidFileError("is damaged or not ONNX") from error
    texts = [entry.value for entry in proto.metadata_props if entry.key == KEY]
    if len(texts) != 1:
        raise InvalidFileError(NOT_OURS, AGAIN)
    return texts[0], {
        entry.value
        for tensor in _tensors(proto)
        if tensor.data_location == tensor.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _tensors(message: Any) -> Iterator[Any]:
    """Every TensorProto in a message, recursively."""
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in [value] if hasattr(value, "ListFields") else value:
                if field.message_type.name == "TensorProto":
                    yield item
                yield from _tensors(item)


def _text_of_xml(content: bytes) -> tuple[str, set[str]]:
    found = re.findall(rb'<%s value="([^"]{1,%d})"' % (KEY.encode(), 2 * MAX_TEXT), content)
    if len(found) != 1:
        raise InvalidFileError(NOT_OURS, AGAIN)
    return html.unescape(found[0].decode("ascii", "replace")), set()


def _text_of_package(path: Path) -> bytes:
    """The description in a .pt2, after checking its checksums."""
    try:
        with zipfile.ZipFile(path) as package:
            if bad := package.testzip():
                raise InvalidFileError(f"is damaged ({bad[:200]!r} in it)")
            names = [name for name in package.namelist() if name.endswith(f"/{INSIDE}")]
            if len(names) != 1 or package.getinfo(names[0]).file_size > MAX_TEXT:
                raise InvalidFileError(NOT_OURS, AGAIN)
            return package.read(names[0])
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, RuntimeError, ValueError) as error:
        raise InvalidFileError("is damaged or not a .pt2") from error
