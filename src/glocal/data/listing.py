"""Annotation files and the paths in them, both untrusted."""

import json
import os
import shlex
import stat
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from glocal.data.objects import where
from glocal.data.sets import Skipped
from glocal.data.walk import walk_folder
from glocal.errors import GlocalError
from glocal.files import printable
from glocal.formatting import few

MOST_BYTES = 2 * 2**30  # of an annotation file; COCO's largest has 0.5 GB
LONGEST_PATH, LONGEST_PART = 4095, 255  # bytes of a path and of each name in it: the limits of Linux
LONGEST_CLASS = 1000  # characters of a class name
LONGEST_SHOWN = 300  # characters of a path or a reason in a message


def read_annotations(file: Path, *, most_bytes: int = MOST_BYTES) -> bytes:
    """The bytes of an annotation file.

    Raises:
        GlocalError: if it is missing, not a regular file, or too large.
    """
    try:
        status = os.stat(file)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for a writer
            raise GlocalError(f"data: expected an annotation file, got something else at {printable(file)}")
        if status.st_size > most_bytes:
            size = f"{status.st_size / 2**20:,.0f} MiB, the limit is {most_bytes / 2**20:,.0f} MiB"
            raise GlocalError(f"data: expected an annotation file, got {printable(file)} of {size}")
        return file.read_bytes()
    except OSError as error:
        raise GlocalError(f"data: expected a readable {printable(file)}, got: {error.strerror}") from None


def read_json(file: Path) -> object:
    """The value of a JSON file.

    Raises:
        GlocalError: if it is unreadable, or not JSON.
    """
    content = read_annotations(file)
    try:
        return json.loads(content)
    except RecursionError:
        problem = "lists nested too deeply"
    except MemoryError:
        problem = "too much for memory"
    except ValueError as error:  # UnicodeDecodeError and numbers of thousands of digits too
        problem = f"damaged JSON ({printable(str(error))[:200]})"
    raise GlocalError(f"data: expected annotations as JSON in {printable(file)}, got {problem}; write the file again")


def read_lines(file: Path) -> list[str]:
    """The stripped lines of a small text file, without empty lines at the end.

    Raises:
        GlocalError: if it is unreadable, or not UTF-8.
    """
    try:
        lines = [line.strip() for line in read_annotations(file).decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise GlocalError(
            f"data: expected UTF-8 in {printable(file)}, got other bytes at {error.start}; save it as UTF-8"
        ) from None
    while lines and not lines[-1]:
        lines.pop()
    return lines


def read_classes(file: Path) -> tuple[str, ...]:
    """Class names, one per line.

    Raises:
        GlocalError: if the file is unreadable or empty, or has an empty line or a class twice.
    """
    names = read_lines(file)
    if not names or "" in names:
        where = f" in line {names.index('') + 1}" if names else ""
        raise GlocalError(f"data: expected a class name in each line of {printable(file)}, got nothing{where}")
    if long := next((number for number, name in enumerate(names, 1) if len(name) > LONGEST_CLASS), None):
        raise GlocalError(
            f"data: expected class names of at most {LONGEST_CLASS} characters in {printable(file)}, got one of "
            f"{len(names[long - 1])} in line {long}"
        )
    twice, number = Counter(names).most_common(1)[0]
    if number > 1:
        raise GlocalError(f"data: expected each class once in {printable(file)}, got {printable(twice)} twice")
    return tuple(names)


class Inside:
    """Checks that relative paths stay inside a folder.

    Args:
        folder: of the paths.
        follow_links: whether links may lead out of it.
    """

    def __init__(self, folder: Path, *, follow_links: bool):
        self.folder = folder
        self.follow_links = follow_links
        self.root = os.path.realpath(folder)
        self.known: dict[str, bool] = {}

    def problem(self, name: object) -> str | None:
        """Why a name is not a file inside the folder, or None."""
        if not isinstance(name, str) or not name:
            return "not a file name"
        try:
            encoded = os.fsencode(name)
            if b"\0" in encoded:
                return "not a file name (it has a zero byte)"
            if len(encoded) > LONGEST_PATH or any(len(part) > LONGEST_PART for part in encoded.split(b"/")):
                return f"not a file name (it has {len(name)} characters)"
        except UnicodeEncodeError:  # an unpaired surrogate, which JSON allows
            return "not a file name (it has an unpaired surrogate)"
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            return f"a file outside the image folder ({_short(name)})"
        parent = os.path.dirname(name)
        if not self.follow_links and not self.known.setdefault(parent, self._holds(parent)):
            return f"a file behind a link ({_short(name)}; --follow-links follows it)"
        return None

    def _holds(self, parent: str) -> bool:
        real = os.path.realpath(os.path.join(self.root, parent))
        return real == self.root or real.startswith(os.path.join(self.root, ""))


def check_no_link(root: Path, path: Path, *, follow_links: bool) -> Path:
    """The path, if there is no link between it and the root.

    Raises:
        GlocalError: if there is one, and links are not followed.
    """
    itself = os.path.normpath(os.path.join(os.path.realpath(root), os.path.relpath(path, root)))
    if not follow_links and os.path.realpath(path) != itself:
        raise GlocalError(f"data: expected {printable(path)} itself, got a link; --follow-links follows it")
    return path


def walk(folder: Path, *, follow_links: bool = False) -> tuple[list[str], list[str]]:
    """Files under a folder, and links that were not followed, relative to it and sorted.

    Hidden and system files are ignored; a folder linked several times is listed once.

    Raises:
        GlocalError: if it is unreadable.
    """
    files: list[str] = []
    links: list[str] = []
    try:
        for listing in walk_folder(folder, follow_links=follow_links):
            files += (os.path.relpath(entry.path, folder) for entry in listing.files)
            links += (os.path.relpath(entry.path, folder) for entry in listing.links)
    except OSError as error:
        raise GlocalError(
            f"data: expected a readable folder, got {printable(error.filename or folder)}: {error.strerror}"
        ) from None
    return sorted(files), sorted(links)


def unusable_error(name: str, skipped: Sequence[Skipped], task: str) -> GlocalError:
    """The error that lists the first five unusable files or objects, and how to list or skip them.

    Args:
        name: of the data.
        skipped: at least one.
        task: for ``glocal check``: detect or segment.
    """
    return GlocalError(
        f"data: expected only usable images and annotations in {printable(name)}, "
        f"got {len(skipped)} unusable{_first_lines(skipped)}\n"
        f"`glocal check {printable(shlex.quote(name))} --task {task}` lists all; "
        f"--on-error skip leaves them out"
    )


def empty_part_error(name: str, part: str, skipped: Sequence[Skipped]) -> GlocalError:
    """The error for a part without a usable image; "" is the only part."""
    of_part = f" of {part}" if part else ""
    return GlocalError(
        f"data: expected images in {printable(name)}{of_part}, got no usable ones{_first_lines(skipped)}"
    )


def _first_lines(skipped: Sequence[Skipped]) -> str:
    lines = few(skipped, 5, "\n  ", show=lambda bad: f"{_short(where(bad))}: {_short(bad.reason)}")
    return f"\n  {lines}" if skipped else ""


def _short(text: str) -> str:
    """Safe to print, and shortened in the middle to `LONGEST_SHOWN`."""
    text = printable(text)
    half = LONGEST_SHOWN // 2
    return text if len(text) <= LONGEST_SHOWN else f"{text[: half - 2]}...{text[1 - half :]}"
