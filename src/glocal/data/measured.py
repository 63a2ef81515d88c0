"""Decode many files once, as `scan` does, and cache image sizes and the values of label maps too."""

import hashlib
import os
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from glocal.data.images import ImageError, ImageLimits, open_image, open_label_map
from glocal.data.scan import FEW, Scanned, cache_file, read_cache, scan_all, scan_lock, stamp, write_cache

MOST_VALUES = 257  # of a label map, cached: one more than 8-bit label maps can have

Kind = Literal["image", "labels"]


@dataclass(frozen=True)
class Measured(Scanned):
    """The result of decoding a file.

    Attributes:
        size: width and height after turning upright; (0, 0) if unreadable.
        values: of a label map, ascending; at most the smallest 257.
    """

    size: tuple[int, int] = (0, 0)
    values: tuple[int, ...] = ()


def measure_files(
    folder: Path,
    names: list[str],
    limits: ImageLimits,
    *,
    kind: Kind,
    follow_links: bool = False,
    progress: bool = True,
    workers: int | None = None,
) -> dict[str, Measured]:
    """Decode every file whole; like `scan.scan_files`, with the same cache, processes and locks.

    Args:
        folder: of the files.
        names: relative to it.
        limits: of the image loader.
        kind: images, or label maps.
        follow_links: whether links to images are followed.
        progress: show a progress bar on standard error if it is a terminal.
        workers: decoding processes; one per CPU core by default.

    Returns:
        name -> result, in the order of ``names``.
    """
    file = cache_file("measured", os.fspath(folder.resolve()), asdict(limits), kind, follow_links)
    with scan_lock(file, shown=progress) if len(names) > FEW else nullcontext():
        stamps = {name: stamp(folder / name) for name in names}  # before reading, so that later changes are noticed
        known = _known(file)
        found = {name: known[name][1] for name in names if stamps[name] and known.get(name, [None])[0] == stamps[name]}
        missing = [name for name in names if name not in found]
        measure = partial(measure_file, os.fspath(folder), limits=limits, kind=kind, follow_links=follow_links)
        for name, scanned in scan_all(measure, missing, progress=progress, workers=workers):
            found[name] = scanned if isinstance(scanned, Measured) else Measured(scanned.reason)
        if len(missing) > FEW:
            good = {name: found[name] for name in names if found[name].reason is None}
            write_cache(file, {name: [stamps[name], one.digest, one.size, one.values] for name, one in good.items()})
    return {name: found[name] for name in names}


def measure_file(folder: str, name: str, *, limits: ImageLimits, kind: Kind, follow_links: bool) -> Scanned:
    """Decode one file; never raises."""
    full = os.path.join(folder, name)
    try:
        if kind == "image":
            width, height = open_image(full, limits=limits, follow_links=follow_links, name=name).size
            values: tuple[int, ...] = ()
        else:
            labels = open_label_map(full, limits=limits, follow_links=follow_links, name=name)
            height, width = labels.shape
            values = tuple(np.flatnonzero(np.bincount(labels.ravel()))[:MOST_VALUES].tolist())
        with open(full, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except ImageError as error:
        return Measured(error.reason)
    except OSError as error:  # deleted since it was decoded
        return Measured(f"unreadable ({error.strerror})")
    return Measured(None, digest, (width, height), values)


def _known(file: Path) -> dict[str, tuple[list[int], Measured]]:
    """Name -> stamp and result of each readable file in the cache."""
    known = read_cache(file)
    found = {}
    for name, entry in known.items() if isinstance(known, dict) else ():
        match entry:
            case [list(before), str(digest), [int(width), int(height)], list(values)]:
                found[name] = before, Measured(None, digest, (width, height), tuple(values))
    return found
