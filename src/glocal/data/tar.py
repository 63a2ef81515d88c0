"""Tar: offset and size of each member of an archive, and its faults.

POSIX.1-2017, pax, "pax Interchange Format" and "ustar Interchange Format"; GNU tar manual, "Basic Tar Format".

Parses only headers: tarfile allocates whatever a header claims, seeks backwards at negative sizes and mistakes a
damaged header for the end. Nothing is ever unpacked.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from glocal.files import printable

MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
BLOCK = 512  # tars are padded to it
MOST_HEADER = 2**20  # bytes of a long name or a pax header; paths end at 4,096
TAIL = 64 * 2**10  # checked after the end mark: more than any writer pads (10 KiB)
FILES, FOLDER = (b"0", b"\0", b"7"), b"5"
NON_FILES = {b"1": "a link", b"2": "a link", b"3": "a device", b"4": "a device", b"6": "a pipe"}  # without content


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a tar: offset and size, or why it is not a complete file."""

    name: str
    offset: int
    size: int
    reason: str | None = None


class DamagedError(Exception):
    """A tar that is damaged from here on, and why."""


def read_at(descriptor: int, offset: int, size: int) -> bytes:
    """Read ``size`` bytes, fewer only at the end of the file; one system call reads at most 2 GiB."""
    content = os.pread(descriptor, size, offset)
    while len(content) < size and (more := os.pread(descriptor, size - len(content), offset + len(content))):
        content += more
    return content


def read_members(descriptor: int, end: int) -> Iterator[Member]:
    """Members of a tar (ustar, pax, GNU) in their order, without folders.

    Args:
        descriptor: of the open file.
        end: its size in bytes.

    Raises:
        DamagedError: where it is damaged.
    """
    at = 0
    extended: dict[str, bytes] = {}  # of the next member
    while True:
        header = os.pread(descriptor, BLOCK, at)
        if len(header) < BLOCK:
            raise DamagedError(
                "empty file" if end == 0 else f"shard truncated (it ends at byte {end} without an end mark)"
            )
        if not any(header):
            if os.pread(descriptor, TAIL, at).strip(b"\0"):
                raise DamagedError(f"shard continues after its end mark (at byte {at}: shards cannot be joined by cat)")
            return
        _check_header(header, at)
        kind, start = header[156:157], at + BLOCK
        size = _size(header[124:136], at)
        if kind in b"xgLK":
            if size > MOST_HEADER or start + size > end:
                raise DamagedError(f"shard damaged (at byte {at}: a name or header of {size} bytes)")
            content = os.pread(descriptor, size, start)
            if kind == b"x":
                extended |= _parse_pax(content, at)
            elif kind == b"L":
                extended["path"] = content.partition(b"\0")[0]
            at = start + _padded(size)
            continue
        name, size, sparse = _name(header, extended), _pax_size(extended, size, at), _is_sparse(kind, extended)
        more = kind == b"S" and header[482]  # old GNU sparse files: blocks with the rest of the map
        while more:
            block = os.pread(descriptor, BLOCK, start)
            if len(block) < BLOCK:
                raise DamagedError(f"shard truncated (it ends at byte {end}, inside {printable(name)})")
            more, start = block[504], start + BLOCK
        extended = {}
        if kind in NON_FILES:
            yield Member(name, 0, 0, f"is {NON_FILES[kind]} (only files are supported)")
            size = 0
        elif kind == FOLDER or (kind == b"\0" and name.endswith("/")):
            size = 0
        elif start + size > end:
            yield Member(name, 0, 0, f"is truncated (it claims {size:,} bytes, the shard has {max(0, end - start):,})")
            raise DamagedError(f"shard truncated (it ends at byte {end}, inside {printable(name)})")
        elif sparse:
            yield Member(name, 0, 0, "is a sparse file (not supported)")
        elif kind in FILES:
            yield Member(name, start, size)
        else:
            yield Member(name, 0, 0, "is of an unknown kind (only files are supported)")
        at = start + _padded(size)


def _check_header(header: bytes, at: int) -> None:
    stored = re.match(rb"[ \0]*([0-7]+)", header[148:156])
    blank = header[:148] + b" " * 8 + header[156:]  # the checksum counts its own field as blank
    if stored is None or int(stored[1], 8) != sum(blank):
        if at == 0:
            packed = next(
                (f" but one compressed with {how}" for magic, how in MAGIC.items() if header.startswith(magic)), ""
            )
            raise DamagedError(
                f"not a plain tar{packed} (unpack it)" if packed else "not a tar (its first header is damaged)"
            )
        raise DamagedError(f"shard damaged (at byte {at}: no valid header)")


def _size(number: bytes, at: int) -> int:
    """Octal digits, or, if the first bit is set, a big-endian number; never negative."""
    if number[0] == 0x80:
        return int.from_bytes(number[1:], "big")
    digits = re.fullmatch(rb"[ \0]*([0-7]*)[ \0].*|[ \0]*([0-7]*)", number, re.DOTALL)
    if digits is None:
        raise DamagedError(f"shard damaged (at byte {at}: no valid size)")
    return int(digits[1] or digits[2] or b"0", 8)


def _parse_pax(content: bytes, at: int) -> dict[str, bytes]:
    """Records of ``length key=value`` and a newline; the length counts itself. Only path, size and sparse are kept."""
    records, position = {}, 0
    while position < len(content):
        length = re.match(rb"(\d{1,7}) ", content[position : position + 8])
        record = content[position : position + int(length[1])] if length else b""
        if length is None or len(record) < max(int(length[1]), length.end() + 1) or record[-1:] != b"\n":
            raise DamagedError(f"shard damaged (at byte {at}: no valid pax header)")
        key, _, value = record[length.end() : -1].partition(b"=")
        if key in (b"path", b"size", b"GNU.sparse.name"):
            records[key.decode()] = value
        if key.startswith(b"GNU.sparse."):
            records["sparse"] = b""
        position += len(record)
    return records


def _name(header: bytes, extended: Mapping[str, bytes]) -> str:
    name = extended.get("GNU.sparse.name", extended.get("path"))
    if name is None:
        name, prefix = header[:100].partition(b"\0")[0], header[345:500].partition(b"\0")[0]
        if prefix and header[257:263] == b"ustar\0":  # GNU uses this field otherwise
            name = prefix + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _pax_size(extended: Mapping[str, bytes], size: int, at: int) -> int:
    if "size" not in extended:
        return size
    if not re.fullmatch(rb"\d{1,19}", extended["size"]):
        raise DamagedError(f"shard damaged (at byte {at}: no valid size)")
    return int(extended["size"])


def _is_sparse(kind: bytes, extended: Mapping[str, bytes]) -> bool:
    return kind == b"S" or "sparse" in extended


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
