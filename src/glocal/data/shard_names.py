"""The shards of a data set: a folder, or a pattern with braces or stars; val is found beside train."""

import glob
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from glocal.data.sets import some
from glocal.data.walk import list_folder
from glocal.errors import GlocalError
from glocal.files import printable

SHARD = ".tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
MOST_SHARDS = 1_000_000  # of a brace range


@dataclass(frozen=True)
class ShardList:
    """The shards of a data set.

    Attributes:
        name: as the user wrote it.
        root: common folder of all shards.
        parts: "train" and "val", or "" if val is to be held out -> absolute paths.
        unused: other shards of the folder.
    """

    name: str
    root: Path
    parts: dict[str, list[str]]
    unused: list[str]


def is_shards(name: str) -> bool:
    """Whether DATA means shards: a .tar, with or without braces and stars, or a folder of them without class folders.

    Compressed ones count: `list_shards` raises an error for them.
    """
    if os.path.isdir(name):
        return bool(_tars(name))
    return name.casefold().endswith((SHARD, *COMPRESSED))


def expand_braces(pattern: str) -> list[str]:
    """Expand the braces of a pattern: ``{000..099}`` counts up at its width, ``{a,b}`` lists; others stay.

    Raises:
        GlocalError: for a descending range, or more than a million names.
    """
    names: list[str] = []
    expanded = [pattern]
    while expanded != names:
        names, found = expanded, dict[str, None]()
        for name in names:
            inside = _expand_one(name) or [name]
            if len(names) * len(inside) > MOST_SHARDS:
                raise GlocalError(f"data: expected at most {MOST_SHARDS:,} shards, got more in {printable(pattern)}")
            found.update(dict.fromkeys(inside))
        expanded = list(found)
    return names


def _expand_one(name: str) -> list[str]:
    """Expand the first innermost braces; none if there are no braces."""
    braces = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", name)
    if braces is None:
        return []
    first, last, listed = braces.groups()
    if listed is not None:
        inside = listed.split(",")
    else:
        if len(first) > 18 or len(last) > 18 or not 0 <= int(last) - int(first) < MOST_SHARDS:
            raise GlocalError(
                f"data: expected an ascending range of at most {MOST_SHARDS:,} shards, got {printable(braces[0])}"
            )
        padded = any(end.startswith("0") and len(end) > 1 for end in (first, last))
        width = max(len(first), len(last)) if padded else 0
        inside = [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    return [name[: braces.start()] + one + name[braces.end() :] for one in inside]


def list_shards(name: str) -> ShardList:
    """Find the shards of a data set, and val beside train.

    Args:
        name: a folder of shards, or a path that ends in .tar, with ``{000..099}``, ``{a,b}`` or ``*`` in it.

    Raises:
        GlocalError: if shards are missing, compressed, not on a file system, or of more than one part.
    """
    if "://" in name or name.startswith("pipe:"):
        raise GlocalError(
            f"data: expected shards on a local or mounted file system, got {printable(name)}; "
            f"mount the storage or copy the shards: images are read by random access"
        )
    if os.path.isdir(name):
        return _list_folder(name)
    _refuse_compressed(name)
    names = [name] if os.path.lexists(name) else expand_braces(name)
    files: dict[str, None] = {}
    missing = []
    for one in names:
        matching = sorted(_matching(one)) if "*" in one and not os.path.lexists(one) else [one]
        files.update(dict.fromkeys(os.path.abspath(file) for file in matching))
        missing += [file for file in matching if not os.path.lexists(file)]
        if not matching:
            raise GlocalError(f"data: expected shards, got no match for {printable(one)}")
    if missing:
        raise GlocalError(
            f"data: expected {len(files)} shard{'s' * (len(files) > 1)}, got {len(files) - len(missing)}; "
            f"missing: {some(missing)}"
        )
    val = _val_beside(files)
    if both := sorted(set(files) & set(val)):
        raise GlocalError(
            f"data: expected shards of one part, got those of train and val in {printable(name)}: "
            f"{some([os.path.basename(file) for file in both])}; "
            f"pass only the shards of train (val beside them is found by name), or the folder"
        )
    return _listed(name, list(files), val, [])


def _tars(folder: str) -> list[str]:
    """Names of the shards in a folder, sorted; none if it has subfolders, which are classes."""
    try:
        listing = list_folder(folder)
    except OSError:  # reported when the folder is read
        return []
    if listing.folders:
        return []
    entries = listing.files + listing.links
    return sorted(entry.name for entry in entries if entry.name.casefold().endswith((SHARD, *COMPRESSED)))


def _list_folder(folder: str) -> ShardList:
    names = _tars(folder)
    for name in names:
        _refuse_compressed(os.path.join(folder, name))
    files = [os.path.abspath(os.path.join(folder, name)) for name in names]
    train = [file for file in files if "train" in os.path.basename(file)]
    if not train:
        if others := [name for name in names if re.match(r"(val|valid|validation|test)(?![a-z])", name)]:
            raise GlocalError(
                f"data: expected {printable(os.path.join(folder, 'train-*.tar'))} beside those of other parts, "
                f"got {some(others)}; rename the training shards to train-*.tar"
            )
        return _listed(folder, files, [], [])
    val = [file for file in _val_beside(train) if file not in train]
    used = {*train, *val}
    return _listed(folder, train, val, [os.path.basename(file) for file in files if file not in used])


def _listed(name: str, train: list[str], val: list[str], unused: list[str]) -> ShardList:
    root = Path(os.path.commonpath([os.path.dirname(file) for file in (*train, *val)]))
    return ShardList(name, root, {"train": train, "val": val} if val else {"": train}, unused)


def _refuse_compressed(name: str) -> None:
    if name.casefold().endswith(COMPRESSED):
        raise GlocalError(
            f"data: expected plain .tar shards, got {printable(name)}: compressed tars have no random access, "
            f"and images are compressed already; unpack it to a .tar (gunzip, unxz)"
        )


def _matching(pattern: str) -> list[str]:
    """Files that match a path with stars; no other character is special."""
    return glob.glob("*".join(glob.escape(piece) for piece in pattern.split("*")))


def _val_beside(train: Iterable[str]) -> list[str]:
    """The shards of val beside those of train: the same names with val for train, with any numbers.

    timm's ImageNet shards use ``validation``.
    """
    for part in ("val", "validation"):
        patterns: dict[str, None] = {}
        for file in train:
            folder, name = os.path.split(file)
            before, word, after = name.rpartition("train")
            if word:
                counted = re.sub(r"\d+", "*", after)
                patterns[os.path.join(folder, f"{before}{part}{counted}")] = None
        if found := sorted({file for pattern in patterns for file in _matching(pattern)}):
            return found
    return []
