"""Decode many files once, as `scan` does, and remember what else checks need: sizes, and the values of label maps."""

import hashlib
import os
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from glocal.data.images import ImageError, ImageLimits, open_image, open_label_map
from glocal.data.scan import FEW, Scanned, alone, cache_file, read_cache, scan_all, stamp, write_cache

MOST_VALUES = 257  # of a label map that are remembered: one more than label maps of 8 bits can have

Kind = Literal["image", "labels"]


@dataclass(frozen=True)
class Measured(Scanned):
    """What was found of a file.

    Attributes:
        size: width and height after turning upright; (0, 0) where it is no image.
        values: of a label map, ascending; the smallest 257 where there are more.
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
        limits: of the gate.
        kind: images, or label maps.
        follow_links: whether a link to an image is an image.
        progress: show a progress bar on standard error, where it is a terminal.
        workers: processes; as many as there are processors by default.

    Returns:
        name -> what was found, in the order of ``names``.
    """
    file = cache_file("measured", os.fspath(folder.resolve()), asdict(limits), kind, follow_links)
    with alone(file, shown=progress) if len(names) > FEW else nullcontext():
        stamps = {name: stamp(folder / name) for name in names}  # before reading: a later change is then noticed
        known = _known(file)
        found = {name: known[name][1] for name in names if stamps[name] and known.get(name, [None])[0] == stamps[name]}
        missing = [name for name in names if name not in found]
        look = partial(measure_file, os.fspath(folder), limits=limits, kind=kind, follow_links=follow_links)
        for name, scanned in scan_all(look, missing, progress=progress, workers=workers):
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
    except OSError as error:  # gone since it was decoded
        return Measured(f"cannot be read ({error.strerror})")
    return Measured(None, digest, (width, height), values)


def _known(file: Path) -> dict[str, tuple[list[int], Measured]]:
    """Name -> stamp and what was found, of the files that were images."""
    known = read_cache(file)
    found = {}
    for name, entry in known.items() if isinstance(known, dict) else ():
        match entry:
            case [list(before), str(digest), [int(width), int(height)], list(values)]:
                found[name] = before, Measured(None, digest, (width, height), tuple(values))
    return found
