"""The index of a shard: samples from the headers and labels of its members, and access to the bytes of each image."""

import errno
import itertools
import json
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

from glocal.data.images import ImageError, ImageLimits
from glocal.data.scan import stamp
from glocal.data.tar import DamagedError, Member, read_at, read_members
from glocal.files import printable
from glocal.formatting import few

INDEX_VERSION = 2  # raise it when the same shard gives other samples or reasons: they are cached under it
IMAGES = frozenset(
    ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif")
)  # formats of the image loader, by extension
LABELS = ("cls", "json")
MOST_LABELS = 1_000_000  # larger labels are errors or attacks: each class takes memory
MOST_LABEL = {"cls": 64, "json": 2**20}  # bytes
OPEN_SHARDS = 64  # descriptors a process keeps; the usual limit of a process is 1,024


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample of a shard.

    Attributes:
        name: of the image in the shard, or of the first member if there is no image.
        offset: of the image's bytes.
        size: of the image in bytes.
        label: from .cls, or "label" or "cls" in .json.
        cls: class name: "class" in .json.
        reason: why it is unusable, or None.
        digest: SHA-256 of the image's bytes; "" until it is decoded.
    """

    name: str
    offset: int
    size: int
    label: int | None
    cls: str | None
    reason: str | None
    digest: str = ""

    @property
    def key(self) -> str:
        """The common key of the sample's members."""
        return split_name(self.name)[0]


@dataclass
class Index:
    """The samples of a shard.

    Attributes:
        stamp: size, times and inode of the shard; None if it is unreadable.
        samples: in their order.
        refused: (name, reason) of members that are not files.
        unused: members that belong to no sample.
        damage: why the rest of the shard is unreadable, or None.
    """

    stamp: list[int] | None
    samples: list[Sample] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    damage: str | None = None


def split_name(name: str) -> tuple[str, str]:
    """Key and extension of a member: the base name is cut at its first dot; the extension is the rest, in lower case.

    A name without a dot, or with a leading dot, belongs to no sample and has the key "".
    """
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (folder + slash + stem, extension.lower()) if stem and extension else ("", "")


def read_index(file: str) -> Index:
    """Read the headers and labels of a shard once; never raises for its content."""
    index = Index(stamp(file))
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):  # opening a pipe would wait for a writer
            return replace(index, stamp=None, damage="expected a regular file, got something else")
        descriptor = os.open(file, os.O_RDONLY)
        try:
            _fill(index, descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        return Index(None, damage=f"unreadable ({error.strerror})")
    return index


# Members


def _fill(index: Index, descriptor: int) -> None:
    """Read the members of a shard into an index."""
    members: list[Member] = []
    try:
        for member in read_members(descriptor, os.fstat(descriptor).st_size):
            members.append(member)
    except DamagedError as error:
        index.damage = str(error)
    index.refused += [(member.name, member.reason) for member in members if member.reason is not None]
    for key, group in itertools.groupby(members, key=lambda member: split_name(member.name)[0]):
        if not key:
            index.unused += [member.name for member in group if member.reason is None]
        elif sample := _sample(descriptor, list(group)):
            index.samples.append(sample)


def _sample(descriptor: int, members: list[Member]) -> Sample | None:
    """The sample of the members of one key; None if its image is not a file and already in ``refused``."""
    files = [member for member in members if member.reason is None]
    images = [member for member in files if _kind(member) in IMAGES]
    if not images:
        if not files or any(_kind(member) in IMAGES for member in members):
            return None
        return Sample(files[0].name, 0, 0, None, None, f"no image (only {_names(files)})")
    label, cls, reason = _read_label(descriptor, [member for member in files if _kind(member) in LABELS])
    if len(images) > 1:
        reason = f"several images of one key ({_names(images)}; a key ends at the first dot of the name)"
    return Sample(images[0].name, images[0].offset, images[0].size, label, cls, reason or None)


def _read_label(descriptor: int, members: list[Member]) -> tuple[int | None, str | None, str]:
    """Label, class name and why there is neither; .cls takes precedence over .json."""
    found = {}
    for kind in LABELS:
        of_kind = [member for member in members if _kind(member) == kind]
        if len(of_kind) > 1:
            return None, None, f"several labels ({_names(of_kind)})"
        if of_kind:
            size = of_kind[0].size
            if size > MOST_LABEL[kind]:
                return None, None, f"no label (.{kind}: expected at most {MOST_LABEL[kind]:,} bytes, got {size:,})"
            found[kind] = _parse_label(kind, read_at(descriptor, of_kind[0].offset, size))
    if "cls" not in found:
        return found.get("json", (None, None, "no label (expected .cls or .json of the same key next to it)"))
    label, _, reason = found["cls"]
    return label, found["json"][1] if "json" in found else None, reason


def _kind(member: Member) -> str:
    """Last part of the extension: jpg for key.jpg and key.left.jpg."""
    return split_name(member.name)[1].rpartition(".")[2]


def _names(members: list[Member]) -> str:
    return few(members, 3, show=lambda member: printable(os.path.basename(member.name)))


# Labels


def _parse_label(extension: str, content: bytes) -> tuple[int | None, str | None, str]:
    """Label, class name and why there is neither, from the bytes of a .cls or .json."""
    if extension == "cls":
        if digits := re.fullmatch(rb"\s*(\d{1,7})\s*", content):
            return _in_range(int(digits[1]))
        return None, None, f"no label (.cls: expected a decimal number, got {printable(repr(content[:20])[1:])})"
    try:
        meta = json.loads(content)
    except (ValueError, RecursionError):  # UnicodeDecodeError is one
        return None, None, "no label (.json: expected JSON, got something else)"
    if not isinstance(meta, dict):
        return None, None, f"no label (.json: expected an object, got {type(meta).__name__})"
    cls = meta.get("class")
    named = isinstance(cls, str) and cls.strip() and _is_text(cls)
    for label in (meta.get("label"), meta.get("cls")):
        if type(label) is int:  # not a bool
            number, _, reason = _in_range(label)
            return number, cls if named and not reason else None, reason
    if named:
        return None, cls, ""
    return None, None, 'no label (.json: expected "label" or "cls" with a number, or "class" with a name)'


def _in_range(label: int) -> tuple[int | None, None, str]:
    if 0 <= label < MOST_LABELS:
        return label, None, ""
    return None, None, f"label out of range ({str(label)[:20]}, expected 0 to {MOST_LABELS - 1:,})"


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # an unpaired surrogate, which JSON allows
        return False
    return True


# Bytes


class _Open:
    """A shard open for reading; closed with its last reference, so never while a thread reads from it."""

    descriptor = -1

    def __init__(self, file: str) -> None:
        self.descriptor = os.open(file, os.O_RDONLY)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if self.descriptor >= 0:
            close(self.descriptor)


@lru_cache(maxsize=OPEN_SHARDS)
def _opened(file: str, size: int, changed: int) -> _Open:
    """The shard of this size and modification time in ns; forks may share it, as ``pread`` has no file position.

    Raises:
        OSError: if it cannot be opened, or (ESTALE) has changed.
    """
    shard = _Open(file)
    status = os.fstat(shard.descriptor)
    if (status.st_size, status.st_mtime_ns) != (size, changed):
        raise OSError(errno.ESTALE, "the shard has changed since it was checked")
    return shard


def read_image(name: str, file: str, stamp: tuple[int, int], offset: int, size: int, *, limits: ImageLimits) -> bytes:
    """The bytes of an image.

    Raises:
        ImageError: if it is too large, or the shard has changed.
    """
    if size > limits.max_bytes:  # before reading; the image loader checks files likewise
        raise ImageError(name, f"has {size / 2**20:.1f} MiB, the limit is {limits.max_bytes / 2**20:.1f} MiB")
    try:
        shard = _opened(file, *stamp)  # keeps it open until the bytes are read
        content = read_at(shard.descriptor, offset, size)
    except OSError as error:
        raise ImageError(name, f"unreadable ({error.strerror})") from None
    if len(content) < size:
        raise ImageError(name, "truncated (the shard ends inside it)")
    return content
