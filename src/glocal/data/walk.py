"""Walk image folders, with one rule for hidden files, links, and system files of Windows and macOS."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SYSTEM_NAMES = frozenset(("Thumbs.db", "desktop.ini", "__MACOSX"))  # of Windows and macOS


class Listing(NamedTuple):
    """Entries of a folder by name, without hidden and system names.

    Attributes:
        folders: including links to folders if links are followed.
        files: all others, including links to files if links are followed.
        links: not followed.
    """

    folders: list[os.DirEntry[str]]
    files: list[os.DirEntry[str]]
    links: list[os.DirEntry[str]]


def list_folder(folder: str | Path, *, follow_links: bool = False) -> Listing:
    """Entries of a folder, not recursive.

    Raises:
        OSError: if it is unreadable.
    """
    listing = Listing([], [], [])
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith(".") or entry.name in SYSTEM_NAMES:
            continue
        if entry.is_symlink() and not follow_links:
            listing.links.append(entry)
        # entry.is_dir needs no stat, but raises for circular links, which count as files here
        elif os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
            listing.folders.append(entry)
        else:
            listing.files.append(entry)
    return listing


def walk_folder(
    folder: str | Path, *, follow_links: bool = False, visited: set[tuple[int, int]] | None = None
) -> Iterator[Listing]:
    """`list_folder` of a folder and all its subfolders, parents first, by name.

    Args:
        folder: the root.
        follow_links: whether links are followed.
        visited: (device, inode) of folders to leave out; updated, so that a folder linked several times comes once.

    Raises:
        OSError: if a folder is unreadable.
    """
    visited = set() if visited is None else visited
    waiting: list[str | Path] = [folder]
    while waiting:
        folder = waiting.pop()
        if (inode := inode_of(folder)) in visited:
            continue
        visited.add(inode)
        listing = list_folder(folder, follow_links=follow_links)
        waiting += [entry.path for entry in reversed(listing.folders)]
        yield listing


def inode_of(path: str | Path) -> tuple[int, int]:
    """(device, inode): the same for two names of one file."""
    status = os.stat(path)
    return status.st_dev, status.st_ino
