"""Folders that can be resumed: one process holds one, a plan says what it is of, files are whole or not there.

`glocal train`, `compare`, `predict`, `detect` and `segment` keep their work this way: the plan is written first and
compared on --resume; files and folders are written under another name, synced, and renamed into place, so a process
that is killed leaves the old or the new, and perhaps an unfinished one that `clean` deletes.
"""

import errno
import fcntl
import json
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glocal.errors import GlocalError
from glocal.files import atomic_write_text, printable, sync

UNFINISHED = (".tmp-", ".unfinished-")
"""How the names of unfinished files and folders begin; the second until 0.1."""


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


def agree_on_plan(
    file: Path,
    plan: Mapping[str, Any],
    *,
    upgrade: Callable[[dict[str, Any]], dict[str, Any]] = lambda before: before,
    allow_changed: bool | None = None,
) -> list[str]:
    """Write the plan of new work, or compare it with that of the work to resume.

    Args:
        file: where the plan is.
        plan: what the results depend on, as JSON.
        upgrade: brings the plan of an older version to the names of this one.
        allow_changed: whether to go on although the plan differs; None where there is no such option.

    Returns:
        What differs, if that is allowed.

    Raises:
        GlocalError: for a plan that is damaged, or another one; the differences are listed.
    """
    if not file.exists():
        atomic_write_text(file, json.dumps(plan, indent=1))
        return []
    where = printable(file.parent) if file.name.startswith(("plan", "job")) else printable(file)
    try:
        before = upgrade(json.loads(file.read_bytes()))
        changes = list(differences(before, json.loads(json.dumps(plan))))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise GlocalError(f"--resume: {printable(file)} is damaged ({error}); choose another --out") from error
    if changes and not allow_changed:
        choice = "" if allow_changed is None else ", or go on with the change by --allow-changed"
        raise GlocalError(
            f"--resume: {where} was started with other settings:\n  "
            + "\n  ".join(printable(change) for change in changes)
            + f"\nAsk for the same again, or choose another --out{choice}."
        )
    return changes


def refuse_existing(out: Path, what: str) -> None:
    """Raise GlocalError for a folder that has work already, where --resume is not given."""
    raise GlocalError(f"out: {printable(out)} has {what} already; go on with --resume or choose another --out")


def differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """``budget: was "5ep", is "3ep"`` for each value that differs between two nested dictionaries."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*before, *now)):
            yield from differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif before != now:
        yield f"{name}: was {json.dumps(before)}, is {json.dumps(now)}"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the place of ``path`` when the block ends; after an error it is deleted.

    Its files and the folder itself are on the disk before it is renamed.
    """
    folder = path.parent / f".tmp-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True)
        yield folder
        for file in sorted(folder.iterdir()):
            sync(file)
        sync(folder)
        aside = _put_aside(path)
        folder.rename(path)
        sync(path.parent)
        if aside is not None:
            _delete(aside)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def remove(path: Path) -> None:
    """Delete a folder: it is first renamed, so that half of one is never taken for one."""
    aside = _put_aside(path)
    if aside is not None:
        sync(path.parent)
        _delete(aside)


def clean(folder: Path) -> None:
    """Delete what a process that was killed left unfinished in a folder."""
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name.startswith(UNFINISHED):
                _delete(path)


def _put_aside(path: Path) -> Path | None:
    if not os.path.lexists(path):
        return None
    aside = path.parent / f".tmp-{os.getpid()}-{secrets.token_hex(4)}"
    path.rename(aside)
    return aside


def _delete(path: Path) -> None:
    """A folder, or what stands in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
