"""Resumable folders: locked by one process, described by a plan, their parts whole or not there.

The plan is written first and compared on --resume. Files are written by `glocal.files`, folders by `replacing`: under a
temporary name, synced, and renamed into place, so a killed process leaves the old or the new version, and perhaps an
unfinished one, which `clean` deletes.
"""

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
from glocal.files import atomic_write_text, lock, printable, sync

UNFINISHED = (".tmp-", ".unfinished-")
"""Prefixes of unfinished files and folders; the second one until 0.1."""


def check_writable(out: Path) -> None:
    """Raise GlocalError for a folder that is not writable, before images are read; leaves no files."""
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


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Context that locks a folder for this process (`glocal.files.lock`); creates it if it is missing.

    Raises:
        GlocalError: for a folder that is not writable or in use.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a+")  # noqa: SIM115 - held open as long as the folder is held
    except OSError as error:
        raise GlocalError(
            f"out: cannot write to {printable(folder)} ({error.strerror}); choose another --out"
        ) from error
    with file:
        try:
            lock(file)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise GlocalError(
                f"out: {printable(folder)} is in use by {holder}; wait for it or choose another --out"
            ) from error
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def agree_on_plan(
    file: Path,
    plan: Mapping[str, Any],
    *,
    upgrade: Callable[[dict[str, Any]], dict[str, Any]] = lambda before: before,
    allow_changed: bool | None = None,
) -> list[str]:
    """Write a new plan, or compare it with that of the work to resume.

    Args:
        file: path of the plan.
        plan: everything that the results depend on, as JSON.
        upgrade: converts the plan of an older version to current names.
        allow_changed: whether to resume although the plan differs; None without such an option.

    Returns:
        The differences, if they are allowed.

    Raises:
        GlocalError: for a damaged plan, or a different one; the differences are listed.
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
        choice = "" if allow_changed is None else ", or accept the changes by --allow-changed"
        raise GlocalError(
            f"--resume: {where} was started with other settings:\n  "
            + "\n  ".join(printable(change) for change in changes)
            + f"\nUse the same settings, or choose another --out{choice}."
        )
    return changes


def refuse_existing(out: Path, what: str) -> None:
    """Raise GlocalError for a folder with existing work, if --resume is not given."""
    raise GlocalError(f"out: {printable(out)} has {what} already; use --resume or choose another --out")


def differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """``budget: was "5ep", is "3ep"`` for each value that differs between two nested dictionaries."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*before, *now)):
            yield from differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif before != now:
        yield f"{name}: was {json.dumps(before)}, is {json.dumps(now)}"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Context with a new folder that replaces ``path`` at the end; after an error it is deleted.

    Its files and the folder itself are synced before it is renamed.
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
    """Delete a folder; it is first renamed, so that a partly deleted one is never used."""
    aside = _put_aside(path)
    if aside is not None:
        sync(path.parent)
        _delete(aside)


def clean(folder: Path) -> None:
    """Delete unfinished files and folders of killed processes."""
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
    """Delete a folder or a file."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
