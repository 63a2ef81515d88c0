"""Folders of images: ``DATA/train/CLASS/*`` with ``DATA/val/CLASS/*``, or one ``DATA/CLASS/*`` that is split here."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from glocal.data.images import ImageLimits
from glocal.data.scan import Scanned, scan_files
from glocal.data.sets import Skipped
from glocal.errors import GlocalError
from glocal.files import printable

PARTS = ("train", "val")
SYSTEM_NAMES = frozenset(("Thumbs.db", "desktop.ini", "__MACOSX"))  # left by Windows and macOS, no one's images


@dataclass(frozen=True)
class Tree:
    """What a folder holds.

    Attributes:
        root: the folder.
        parts: part ("train", "val", or "" where the folder is not split) -> class -> paths relative to root, sorted.
        links: links that were not followed, relative to root.
        repeats: files that are another file of the tree under a second name (hard links), left out.
    """

    root: Path
    parts: dict[str, dict[str, list[str]]]
    links: list[str]
    repeats: list[Skipped]


@dataclass(frozen=True)
class Checked:
    """A tree whose every file has been decoded once.

    Attributes:
        tree: the folder.
        files: relative path -> what the scan found.
    """

    tree: Tree
    files: dict[str, Scanned]

    @property
    def skipped(self) -> list[Skipped]:
        """Files that are no images of the set, with reasons, by path."""
        bad = [Skipped(path, found.reason) for path, found in self.files.items() if found.reason is not None]
        return sorted([*bad, *self.tree.repeats], key=lambda skipped: skipped.path)

    def good(self, part: str) -> dict[str, list[str]]:
        """Class -> paths of a part that can be decoded."""
        classes = self.tree.parts.get(part, {})
        return {name: [p for p in paths if self.files[p].reason is None] for name, paths in classes.items()}


def read_tree(root: Path, *, follow_links: bool = False) -> Tree:
    """List the images of a folder by part and class; names that begin with a dot are no classes and no images.

    Raises:
        GlocalError: if the folder is missing, unreadable, or holds no class folders.
    """
    if not root.is_dir():
        what = "a file" if root.exists() else "nothing"
        raise GlocalError(f"data: expected a folder of images, got {what} at {printable(root)}")
    walker = _Walker(root, follow_links)
    try:
        folders = walker.folders(root)
        if "train" in folders:
            others = [name for name in folders if name not in PARTS]
            if "val" not in folders and others:
                raise GlocalError(
                    f"data: expected {printable(root)}/val beside train, got {_names(others)}; "
                    f"rename the part to measure on to val, or give {printable(root / 'train')} to have a part held out"
                )
            found = [part for part in PARTS if part in folders]
            parts = {part: walker.classes(folders[part]) for part in found}
            if found == ["train"]:
                parts = {"": parts["train"]}
        else:
            parts = {"": walker.classes(root)}
    except PermissionError as error:
        raise GlocalError(
            f"data: expected a readable folder, got no permission for {printable(error.filename)}"
        ) from None
    if not any(parts.values()):
        raise GlocalError(
            f"data: expected {printable(root)}/train/CLASS/ and val/CLASS/, or CLASS/ folders of images, "
            f"got a folder without class folders"
        )
    return Tree(root, parts, walker.links, walker.repeats)


def check_tree(tree: Tree, limits: ImageLimits, *, follow_links: bool, progress: bool, workers: int | None) -> Checked:
    """Decode every file of a tree once."""
    paths = sorted(path for classes in tree.parts.values() for paths in classes.values() for path in paths)
    found = scan_files(tree.root, paths, limits, follow_links=follow_links, progress=progress, workers=workers)
    return Checked(tree, found)


def hold_out(
    classes: dict[str, list[str]], seed: int, fraction: float
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Split each class: a ``fraction`` of its images, at least one and not all, by the order of SHA-256(seed, path).

    The order of two images depends on nothing but their paths and the seed.
    """
    train, val = {}, {}
    for name, paths in classes.items():
        ranked = sorted(paths, key=lambda path: hashlib.sha256(f"{seed}/".encode() + os.fsencode(path)).digest())
        count = min(max(1, round(fraction * len(paths))), len(paths) - 1)
        val[name], train[name] = sorted(ranked[:count]), sorted(ranked[count:])
    return train, val


def check_classes(classes: dict[str, list[str]], part: str, needed: int) -> None:
    """Refuse a part with fewer than two classes or a class with fewer than ``needed`` images.

    Raises:
        GlocalError: naming the class.
    """
    few = [name for name, paths in classes.items() if len(paths) < needed]
    if few:
        counts = ", ".join(f"{printable(name)} ({len(classes[name])})" for name in few[:10])
        where = f" of {part}" if part else ""
        raise GlocalError(
            f"data: expected at least {needed} readable image{'s' * (needed > 1)} in each class{where}, got {counts}; "
            f"add images or remove the folder (`glocal check` lists what cannot be read)"
        )
    if len(classes) < 2:
        raise GlocalError(f"data: expected at least 2 classes, got {len(classes)}: {_names(classes)}")


def check_same_classes(train: dict[str, list[str]], val: dict[str, list[str]]) -> None:
    """Refuse a val part whose classes are not those of train.

    Raises:
        GlocalError: naming the classes.
    """
    problems = []
    if extra := sorted(set(val) - set(train)):
        problems.append(f"val has classes that train has not: {_names(extra)}")
    if missing := sorted(set(train) - set(val)):
        problems.append(f"val lacks classes of train: {_names(missing)}")
    if problems:
        raise GlocalError(f"data: expected the same class folders in train and val, got: {'; '.join(problems)}")


class _Walker:
    """Walks a folder; remembers links it did not follow and (device, inode) of every file and folder it has seen."""

    def __init__(self, root: Path, follow_links: bool):
        self.root = root
        self.follow_links = follow_links
        self.links: list[str] = []
        self.repeats: list[Skipped] = []
        self.files: dict[tuple[int, int], str] = {}
        self.visited: set[tuple[int, int]] = set()

    def folders(self, folder: Path) -> dict[str, Path]:
        return {entry.name: Path(entry.path) for entry in self._entries(folder) if entry.is_dir()}

    def classes(self, folder: Path) -> dict[str, list[str]]:
        self.visited.clear()
        return {name: sorted(self._images(path)) for name, path in self.folders(folder).items()}

    def _images(self, folder: Path) -> Iterator[str]:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in self.visited:
            return
        self.visited.add((status.st_dev, status.st_ino))
        for entry in self._entries(folder):
            if entry.is_dir():
                yield from self._images(Path(entry.path))
                continue
            relative = os.path.relpath(entry.path, self.root)
            try:
                status = entry.stat()
            except FileNotFoundError:  # a link to nothing: the gate says so
                yield relative
                continue
            first = self.files.setdefault((status.st_dev, status.st_ino), relative)
            if first == relative:
                yield relative
            else:
                self.repeats.append(Skipped(relative, f"the same file as {printable(first)}"))

    def _entries(self, folder: Path) -> list[os.DirEntry[str]]:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        kept = []
        for entry in found:
            if entry.name.startswith(".") or entry.name in SYSTEM_NAMES:
                continue
            if entry.is_symlink() and not self.follow_links:
                relative = os.path.relpath(entry.path, self.root)
                if relative not in self.links:
                    self.links.append(relative)
                continue
            kept.append(entry)
        return kept


def _names(names: list[str] | dict[str, list[str]]) -> str:
    shown = [printable(name) for name in list(names)[:10]]
    return ", ".join(shown) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
