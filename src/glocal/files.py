"""Atomic writes, locks, digests, and texts that are safe to show."""

import fcntl
import hashlib
import os
import secrets
import unicodedata
from pathlib import Path
from typing import IO, Any
from weakref import WeakSet


def atomic_write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file atomically: readers see the old or the new content, also after a crash or a power cut.

    A temporary file in the same folder is written, and renamed to ``path`` by `publish`.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
        publish((temporary, path))
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def atomic_write_text(path: str | Path, text: str) -> None:
    """`atomic_write_bytes` of UTF-8 text; surrogates (from undecodable file names) are escaped."""
    atomic_write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def publish(*moves: tuple[Path, Path]) -> None:
    """Rename (file, name) in this order, once all files are on the disk; the folder of the last name is synced."""
    for file, _ in moves:
        sync(file)
    for file, path in moves:
        os.replace(file, path)
    sync(moves[-1][1].parent)


_LOCKED: WeakSet[IO[Any]] = WeakSet()


def _let_go() -> None:
    """Close inherited files in a forked process: their locks belong to its parent."""
    for file in list(_LOCKED):
        file.close()
    _LOCKED.clear()


os.register_at_fork(after_in_child=_let_go)


def lock(file: IO[Any], *, wait: bool = False) -> None:
    """Lock an open file until it is closed; the operating system does so when this process ends for any reason.

    A process that is forked meanwhile does not hold the lock: there, the file is closed.

    Args:
        file: open for writing.
        wait: until another process has let go of it.

    Raises:
        BlockingIOError: if another process has locked it, and ``wait`` is not set.
        OSError: if the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except PermissionError as error:  # some network file systems say EACCES for EAGAIN
        raise BlockingIOError(*error.args) from error
    _LOCKED.add(file)


def sync(path: str | Path) -> None:
    """Sync a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def printable(name: str | os.PathLike[str]) -> str:
    r"""A name from data for a terminal: control, bidirectional and undecodable characters as ``\x..`` escapes."""
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in _UNSEEN else character
        for character in os.fspath(name)
    )


def escape_formula(text: str) -> str:
    """A text as a cell of CSV: with an apostrophe before it if a spreadsheet would take it for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


_UNSEEN = frozenset(("Cc", "Cf", "Cs", "Co", "Zl", "Zp"))
