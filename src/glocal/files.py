"""Atomic writes, digests, and printable names."""

import hashlib
import os
import secrets
import unicodedata
from pathlib import Path


def atomic_write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file atomically: readers see the old or the new content, also after a crash or a power cut.

    A temporary file in the same folder is written, synced and renamed to ``path``, and the folder is synced.
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
    """`atomic_write_bytes` of UTF-8 text; surrogates (from undecodable file names) are escaped."""
    atomic_write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


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


_UNSEEN = frozenset(("Cc", "Cf", "Cs", "Co", "Zl", "Zp"))
