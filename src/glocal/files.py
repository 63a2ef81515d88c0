"""Files that are whole or not there, folders that one process holds, and names that are safe to print."""

import errno
import fcntl
import hashlib
import json
import os
import secrets
import socket
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glocal.errors import GlocalError


def atomic_write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file so that whoever looks sees the old content or the new, also after a crash or a power cut.

    A temporary file in the same folder is written, synced and renamed over ``path``, and the folder synced.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def atomic_write_text(path: str | Path, text: str) -> None:
    """`atomic_write_bytes` of UTF-8; characters that no encoding has (from undecodable file names) are escaped."""
    atomic_write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def sync(path: str | Path) -> None:
    """Bring what was written to a file, or the names in a folder, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: str | Path) -> str:
    """Digest of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_writable(out: Path) -> None:
    """Refuse a folder that cannot be written before images are read, and leave no trace of the try."""
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise GlocalError(f"out: cannot write to {printable(out)} ({error.strerror}); choose another --out") from error
    finally:
        for folder in missing:
            if folder.exists():
                folder.rmdir()


_HELD: set[Any] = set()


def _let_go() -> None:
    """In a process that was forked: the lock is its parent's, and must end with that."""
    for lock in _HELD:
        lock.close()
    _HELD.clear()


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Take a folder, made if it is not there; no other process can have it at the same time.

    The system lets go of it when this process ends, however it ends.

    Raises:
        GlocalError: for a folder that cannot be written or is in use.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "a+")  # noqa: SIM115 - held open as long as the folder is held
    except OSError as error:
        raise GlocalError(
            f"out: cannot write to {printable(folder)} ({error.strerror}); choose another --out"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise GlocalError(
                f"out: {printable(folder)} is in use by {holder}; wait for it or choose another --out"
            ) from error
        lock.seek(0)
        lock.truncate()
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        _HELD.add(lock)
        try:
            yield
        finally:
            _HELD.discard(lock)


def differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """``budget: was "5ep", is "3ep"`` for each value that differs between two nested dictionaries."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*before, *now)):
            yield from differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif before != now:
        yield f"{name}: was {json.dumps(before)}, is {json.dumps(now)}"


def printable(name: str | os.PathLike[str]) -> str:
    r"""A name from data for a terminal: control, bidirectional and undecodable characters as ``\x..`` escapes."""
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in _UNSEEN else character
        for character in os.fspath(name)
    )


_UNSEEN = frozenset(("Cc", "Cf", "Cs", "Co", "Zl", "Zp"))
