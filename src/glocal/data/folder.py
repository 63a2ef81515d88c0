"""Folders of images: ``DATA/train/CLASS/*`` with ``DATA/val/CLASS/*``, or one ``DATA/CLASS/*``, which is split.

Beside train and val there may be ``DATA/test/CLASS/*``: images that choose nothing.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from glocal.data.images import ImageLimits
from glocal.data.scan import Scanned, scan_files
from glocal.data.sets import Skipped
from glocal.data.walk import inode_of, list_folder, walk_folder
from glocal.errors import GlocalError
from glocal.files import printable
from glocal.formatting import few

PARTS, TEST = ("train", "val"), "test"
OTHER_PARTS = frozenset(("train", "training", "val", "valid", "validation", "test", "testing"))


@dataclass(frozen=True)
class Tree:
    """Files of a folder by part and class.

    Attributes:
        root: the folder.
        parts: part ("train", "val", "test", or "" where the folder is not split) -> class -> paths relative to root,
            sorted.
        links: links that were not followed, relative to root.
        repeats: path of a link to another file of the tree -> the path of that file.
        unused: files and folders beside the parts or the class folders, relative to root.
    """

    root: Path
    parts: dict[str, dict[str, list[str]]]
    links: list[str]
    repeats: dict[str, str]
    unused: list[str]


@dataclass(frozen=True)
class Checked:
    """A tree whose every file has been decoded once.

    Attributes:
        tree: the folder.
        files: relative path -> result of the scan.
        limits: of the image loader.
        follow_links: whether links are followed.
    """

    tree: Tree
    files: dict[str, Scanned]
    limits: ImageLimits
    follow_links: bool

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Unreadable or repeated files with reasons, by path."""
        return tuple(Skipped(path, found.reason) for path, found in sorted(self.files.items()) if found.reason)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the class folders, sorted."""
        return tuple(sorted({name for classes in self.tree.parts.values() for name in classes}))

    @property
    def usable(self) -> dict[str, dict[str, int]]:
        """Part ("train", "val", "test", or "" where the folder is not split) -> class -> number of readable images."""
        return {part: {name: len(paths) for name, paths in self.good(part).items()} for part in self.tree.parts}

    @property
    def unusable(self) -> dict[str, int]:
        """Class -> number of unreadable files."""
        counts = dict.fromkeys(self.classes, 0)
        for classes in self.tree.parts.values():
            for name, paths in classes.items():
                counts[name] += sum(self.files[path].reason is not None for path in paths)
        return counts

    def good(self, part: str) -> dict[str, list[str]]:
        """Class -> paths of the readable images of a part."""
        classes = self.tree.parts.get(part, {})
        return {name: [p for p in paths if self.files[p].reason is None] for name, paths in classes.items()}


def read_tree(root: Path, *, follow_links: bool = False) -> Tree:
    """List the images of a folder by part and class; names that begin with a dot are ignored.

    Raises:
        GlocalError: if the folder is missing, unreadable, or holds no class folders.
    """
    if not os.path.isdir(root):
        what = "a file" if os.path.exists(root) else "nothing"
        raise GlocalError(f"data: expected a folder of images, got {what} at {printable(root)}")
    walker = _Walker(root, follow_links)
    try:
        folders = walker.folders(root)
        if "train" in folders and walker.has_folders(folders["train"]):  # not if train is a class, beside bus and car
            others = [name for name in folders if name not in PARTS]
            if "val" not in folders and others:
                raise GlocalError(
                    f"data: expected {printable(root)}/val beside train, got {_names(others)}; "
                    f"rename the validation folder to val, or pass {printable(root / 'train')} to split it"
                )
            found = [part for part in PARTS if part in folders]
            if TEST in others and walker.has_folders(folders[TEST]):  # without them, images without labels
                found.append(TEST)
            walker.unused += [os.path.join(name, "") for name in others if name not in found]
            parts = {part: walker.classes(walker.folders(folders[part])) for part in found}
            if found == ["train"]:
                parts = {"": parts["train"]}
        else:
            others = [name for name in folders if name.casefold() in OTHER_PARTS]
            if likely := [name for name in others if walker.has_folders(folders[name])]:
                raise GlocalError(
                    f"data: expected {printable(root)}/train and val, or class folders, got {_names(likely)}; "
                    f"rename the training folder to train and the validation folder to val"
                )
            parts = {"": walker.classes(folders)}
    except OSError as error:
        raise GlocalError(
            f"data: expected a readable folder, got {printable(error.filename or root)}: {error.strerror}"
        ) from None
    if not any(parts.values()):
        raise GlocalError(
            f"data: expected {printable(root)}/train/CLASS/ and val/CLASS/, or CLASS/ folders of images, "
            f"got a folder without class folders"
        )
    return Tree(root, parts, walker.links, walker.repeats, sorted(walker.unused))


def check_tree(tree: Tree, limits: ImageLimits, *, follow_links: bool, progress: bool, workers: int | None) -> Checked:
    """Decode every file of a tree once; links to the same file count once."""
    paths = sorted(path for classes in tree.parts.values() for paths in classes.values() for path in paths)
    once = [path for path in paths if path not in tree.repeats]
    found = scan_files(tree.root, once, limits, follow_links=follow_links, progress=progress, workers=workers)
    found |= {path: Scanned(f"the same file as {printable(first)}") for path, first in tree.repeats.items()}
    return Checked(tree, found, limits, follow_links)


def hold_out(
    classes: dict[str, list[str]], seed: int, fraction: float
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Split each class: hold out a ``fraction`` of its images, at least one and not all.

    The order is that of SHA-256(seed, path), so two images are ordered by their paths and the seed alone.
    """
    train, val = {}, {}
    for name, paths in classes.items():
        ranked = sorted(paths, key=lambda path: hashlib.sha256(f"{seed}/".encode() + os.fsencode(path)).digest())
        count = min(max(1, round(fraction * len(paths))), len(paths) - 1)
        val[name], train[name] = sorted(ranked[:count]), sorted(ranked[count:])
    return train, val


def check_classes(classes: dict[str, list[str]], part: str, needed: int) -> None:
    """Check that a part has two or more classes with at least ``needed`` images each.

    Raises:
        GlocalError: naming the class.
    """
    few = [name for name, paths in classes.items() if len(paths) < needed]
    if few:
        counts = ", ".join(f"{printable(name)} ({len(classes[name])})" for name in few[:10])
        where = f" of {part}" if part else ""
        raise GlocalError(
            f"data: expected at least {needed} readable image{'s' * (needed > 1)} in each class{where}, got {counts}; "
            f"add images or remove the class (`glocal check` lists unreadable files)"
        )
    if len(classes) < 2:
        raise GlocalError(f"data: expected at least 2 classes, got {len(classes)}: {_names(classes)}")


def check_same_classes(train: dict[str, list[str]], val: dict[str, list[str]]) -> None:
    """Check that train and val have the same classes.

    Raises:
        GlocalError: naming the classes.
    """
    problems = []
    if extra := sorted(set(val) - set(train)):
        problems.append(f"val has classes missing in train: {_names(extra)}")
    if missing := sorted(set(train) - set(val)):
        problems.append(f"val lacks classes of train: {_names(missing)}")
    if problems:
        raise GlocalError(f"data: expected the same class folders in train and val, got: {'; '.join(problems)}")


def check_test_classes(train: dict[str, list[str]], test: dict[str, list[str]], root: Path) -> None:
    """Check that the classes of test are classes of train; not all of them need images.

    Raises:
        GlocalError: naming those that are not.
    """
    if unknown := sorted(set(test) - set(train)):
        raise GlocalError(
            f"data: expected only class folders of train in {printable(root / TEST)}, got {_names(unknown)}; rename "
            f"them to classes of train ({_names(sorted(train))}), or move them out of {TEST}"
        )


class _Walker:
    """Walks a folder; records links it did not follow, and (device, inode) of every file."""

    def __init__(self, root: Path, follow_links: bool):
        self.root = root
        self.follow_links = follow_links
        self.links: list[str] = []
        self.unused: list[str] = []
        self.repeats: dict[str, str] = {}
        self.files: dict[tuple[int, int], str] = {}

    def has_folders(self, folder: Path) -> bool:
        """Whether a folder holds others, so that it is a part and no class."""
        return bool(list_folder(folder, follow_links=self.follow_links).folders)

    def folders(self, folder: Path) -> dict[str, Path]:
        """Name -> path of the subfolders; files beside them are recorded as unused."""
        listing = list_folder(folder, follow_links=self.follow_links)
        self.links += self._relative(listing.links)
        self.unused += self._relative(listing.files)
        return {entry.name: Path(entry.path) for entry in listing.folders}

    def classes(self, folders: dict[str, Path]) -> dict[str, list[str]]:
        """Class -> paths of its files; a folder linked twice belongs to the first class."""
        visited: set[tuple[int, int]] = set()
        return {name: sorted(self._files(path, visited)) for name, path in folders.items()}

    def _files(self, folder: Path, visited: set[tuple[int, int]]) -> Iterator[str]:
        for listing in walk_folder(folder, follow_links=self.follow_links, visited=visited):
            self.links += self._relative(listing.links)
            for path in self._relative(listing.files):
                try:
                    first = self.files.setdefault(inode_of(self.root / path), path)
                except OSError:  # a broken or circular link: the image loader reports it
                    first = path
                if first != path:
                    self.repeats[path] = first
                yield path

    def _relative(self, entries: list[os.DirEntry[str]]) -> list[str]:
        return [os.path.relpath(entry.path, self.root) for entry in entries]


def _names(names: Iterable[str]) -> str:
    return few([*names], 10, show=printable)
