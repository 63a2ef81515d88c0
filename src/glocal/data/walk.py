"""Walk folders of images: one rule for hidden names, links, and what Windows and macOS leave behind."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SYSTEM_NAMES = frozenset(("Thumbs.db", "desktop.ini", "__MACOSX"))  # left by Windows and macOS, no one's images


class Listing(NamedTuple):
    """Entries of a folder by name, without hidden and system names.

    Attributes:
        folders: and links to folders, where links are followed.
        files: all else, and links to files, where links are followed.
        links: those not followed.
    """

    folders: list[os.DirEntry[str]]
    files: list[os.DirEntry[str]]
    links: list[os.DirEntry[str]]


def list_folder(folder: str | Path, *, follow_links: bool = False) -> Listing:
    """Entries of a folder, not of those below.

    Raises:
        OSError: if it cannot be read.
    """
    listing = Listing([], [], [])
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith(".") or entry.name in SYSTEM_NAMES:
            continue
        if entry.is_symlink() and not follow_links:
            listing.links.append(entry)
        # a link to itself is a file that cannot be read; is_dir of an entry would raise, but needs no stat
        elif os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
            listing.folders.append(entry)
        else:
            listing.files.append(entry)
    return listing


def walk_folder(
    folder: str | Path, *, follow_links: bool = False, visited: set[tuple[int, int]] | None = None
) -> Iterator[Listing]:
    """`list_folder` of a folder and of all below it, each before those inside it, by name.

    Args:
        folder: the first.
        follow_links: whether links are files and folders.
        visited: (device, inode) of folders to leave out, which grows: a folder that several links lead to comes once.

    Raises:
        OSError: if a folder cannot be read.
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
