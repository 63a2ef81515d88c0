"""Exported files as they are read: damaged, made to harm, or whole. Nothing in them is run here.

Of an .onnx or .xml only its one known companion is read beside it, and a digest tells damage, not forgery. A .pt2 has
checksums of its own.
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

from glocal.export.description import KEY, MAX_TEXT, Description, Unusable
from glocal.export.formats import ENDS, INSIDE, beside, digest_of, need
from glocal.files import sha256

NOT_OURS = "was not written by `glocal export`, or is damaged (it does not say how images are prepared)"
AGAIN = "make one with `glocal export`"


class File(NamedTuple):
    """A file that has been checked.

    Attributes:
        path: of the file.
        content: its bytes; of a .pt2 none.
        description: what it says of itself.
        is_alone: whether nothing beside it belongs to it.
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
        Unusable: if there is none, it is damaged, not what its suffix says, or wants to read other files.
        OSError: if it cannot be read.
    """
    if not path.exists():
        raise Unusable("no such file", "check the path")
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
        raise Unusable("is no regular file", "check the path")
    if path.suffix == ".pt2":
        description = _describe(_text_of_package(path), path)
        return File(path, b"", description, True, sha256(path))
    content = path.read_bytes()
    text, places = _text_of_xml(content) if path.suffix == ".xml" else _text_of_onnx(content)
    description = _describe(text, path)
    side = beside(path)
    assert side is not None
    places = {side.name} if path.suffix == ".xml" else places
    if outside := sorted(places - {side.name}):
        raise Unusable(f"wants to read {outside[0]!r}, which is none of its own files", "take another file")
    if places and not (side.exists() and stat.S_ISREG(side.stat(follow_symlinks=False).st_mode)):
        raise Unusable(f"its weights are not beside it: {side.name}", "put that file there")
    if digest_of(content, side if places else None, description.digest) != description.digest:
        raise Unusable("has changed since it was written, or what is beside it has (its digest differs)")
    return File(path, content, description, not places, hashlib.sha256(content).hexdigest())


def _describe(text: str | bytes, path: Path) -> Description:
    description = Description.of(text)
    if ENDS[description.format] != path.suffix:
        raise Unusable(f"is of the format {description.format}, whose files end in {ENDS[description.format]}")
    return description


def _text_of_onnx(content: bytes) -> tuple[str, set[str]]:
    """The description, and the files in which weights are said to lie."""
    try:
        proto = need("onnx").load_model_from_string(content)
    except RuntimeError as error:
        raise Unusable("is damaged or no ONNX") from error
    except Exception as error:
        if type(error).__name__ != "DecodeError":  # protobuf's, wherever it comes from
            raise
        raise Unusable("is damaged or no ONNX") from error
    texts = [entry.value for entry in proto.metadata_props if entry.key == KEY]
    if len(texts) != 1:
        raise Unusable(NOT_OURS, AGAIN)
    return texts[0], {
        entry.value
        for tensor in _tensors(proto)
        if tensor.data_location == tensor.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _tensors(message: Any) -> Iterator[Any]:
    """Every TensorProto in a message, however deep."""
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in [value] if hasattr(value, "ListFields") else value:
                if field.message_type.name == "TensorProto":
                    yield item
                yield from _tensors(item)


def _text_of_xml(content: bytes) -> tuple[str, set[str]]:
    found = re.findall(rb'<%s value="([^"]{1,%d})"' % (KEY.encode(), 2 * MAX_TEXT), content)
    if len(found) != 1:
        raise Unusable(NOT_OURS, AGAIN)
    return html.unescape(found[0].decode("ascii", "replace")), set()


def _text_of_package(path: Path) -> bytes:
    """The description in a .pt2, all of whose checksums are right."""
    try:
        with zipfile.ZipFile(path) as package:
            if bad := package.testzip():
                raise Unusable(f"is damaged ({bad[:200]!r} in it)")
            names = [name for name in package.namelist() if name.endswith(f"/{INSIDE}")]
            if len(names) != 1 or package.getinfo(names[0]).file_size > MAX_TEXT:
                raise Unusable(NOT_OURS, AGAIN)
            return package.read(names[0])
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, RuntimeError, ValueError) as error:
        raise Unusable("is damaged or no .pt2") from error
