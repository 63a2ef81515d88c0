"""Data for detection and instance segmentation: COCO's JSON, Pascal VOC, or a generated set."""

import hashlib
import os
import re
from pathlib import Path
from typing import Literal

import numpy as np

from glocal.data import coco, pasted, voc
from glocal.data.annotated import CheckedPart, Reading
from glocal.data.folder import hold_out
from glocal.data.images import ImageLimits
from glocal.data.listing import check_no_link, empty_part_error, unusable_error
from glocal.data.objects import DetectionSet, DetectionSource
from glocal.data.sets import Skipped, some, warn_of_duplicates
from glocal.errors import GlocalError, check_choice, nearest
from glocal.files import printable

FORMS = "a folder in the layout of COCO or Pascal VOC, FILE.json, FILE.json:FOLDER, or train=FILE.json:FOLDER,val=..."
BOTH = re.compile(
    r"train=(?P<train>.+?\.json)(:(?P<train_images>.+?))?(,val=(?P<val>.+?\.json)(:(?P<val_images>.+))?)?"
)
ONE = re.compile(r"(?P<train>.+?\.json)(:(?P<train_images>.+))?")

Parts = dict[str, CheckedPart]


def load_detection(
    data: str | Path,
    *,
    on_error: Literal["stop", "skip"] = "stop",
    split_seed: int = 0,
    val_fraction: float = 0.2,
    follow_links: bool = False,
    progress: bool = True,
    workers: int | None = None,
    limits: ImageLimits | None = None,
) -> DetectionSource:
    """Load a detection data set and split it into train and val; every image is decoded and every object checked once.

    Args:
        data: a folder with COCO's ``annotations/instances_train*.json`` or Pascal VOC's ``Annotations``; ``FILE.json``
            with its images nearby; ``FILE.json:FOLDER``; ``train=FILE.json:FOLDER,val=FILE.json:FOLDER``; or
            items-on-photos, items-on-photos:SIZE (docs/data-detection.md).
        on_error: "stop" at unusable files and objects, or "skip" and list them.
        split_seed: of the held-out split, if there is no val.
        val_fraction: fraction of the images that is held out then.
        follow_links: whether links inside a folder are followed.
        progress: show progress bars.
        workers: decoding processes; one per CPU core by default.
        limits: of the image loader.

    Raises:
        GlocalError: if the data is missing, its annotations are unreadable, a part is empty, or (with "stop") a file or
            an object is unusable.
    """
    check_choice("on_error", on_error, ("stop", "skip"))
    if not 0 < val_fraction < 1:
        raise GlocalError(f"val_fraction: expected a number between 0 and 1, got {val_fraction}")
    name = os.fspath(data)
    if pasted.is_pasted(name):
        return pasted.items_on_photos(pasted.size_of(name))
    reading = Reading(limits or ImageLimits(), follow_links, progress, workers)
    parts, categories, warnings = _check(name, reading)
    skipped = tuple(sorted((bad for part in parts.values() for bad in part.skipped), key=lambda bad: bad.path))
    if skipped and on_error == "stop":
        raise unusable_error(name, skipped, "detect")
    for part, checked in parts.items():
        if not checked.paths:
            raise empty_part_error(name, part, skipped)
    rows = {part: np.arange(len(checked.paths)) for part, checked in parts.items()}
    split = "train and val as in the data"
    if "" in parts:
        rows, split = _hold_out(parts[""], split_seed, val_fraction)
        parts = {"train": parts[""], "val": parts[""]}
    return _source(name, parts, rows, categories, skipped, warnings, split)


def _check(name: str, reading: Reading) -> tuple[Parts, dict[int, str], list[str]]:
    """Parts by name ("" for one to be split), classes by category id, and warnings."""
    root = Path(name)
    if match := BOTH.fullmatch(name) or ONE.fullmatch(name):
        places = match.groupdict()
        parts = ("train", "val") if places.get("val") else ("",)
        files = {}
        for part in parts:
            file, folder = Path(places[part or "train"]), places[f"{part or 'train'}_images"]
            top = file.parent.parent if file.parent.name == "annotations" else file.parent
            files[part] = coco.read_coco(
                file, top, _folder(folder) if folder else None, follow_links=reading.follow_links
            )
        return _check_coco(files, reading)
    if not root.is_dir():
        what = (
            f"{printable(name)}, which is not a .json file" if root.exists() else f"{printable(name)}, which is neither"
        )
        raise GlocalError(f"data: expected {FORMS}, or {pasted.NAME}, got {what}{nearest(name, [pasted.NAME])}")
    if voc.is_voc(root):
        return _check_voc(root, reading)
    annotations = coco.find_coco(root, follow_links=reading.follow_links)
    if not annotations:
        inner = [
            printable(path.parent) for path in sorted(root.glob("*/*/Annotations")) + sorted(root.glob("*/Annotations"))
        ]
        hint = f"; Pascal VOC's layout is in {', '.join(inner[:3])}: pass one of these" if inner else ""
        raise GlocalError(
            f"data: expected annotations/instances_train*.json (COCO) or Annotations and JPEGImages (Pascal VOC) in "
            f"{printable(name)}, got neither{hint}"
        )
    files = {
        part if "val" in annotations else "": coco.read_coco(file, root, follow_links=reading.follow_links)
        for part, file in annotations.items()
    }
    return _check_coco(files, reading)


def _folder(name: str) -> Path:
    if not os.path.isdir(name):
        what = "a file" if os.path.exists(name) else "nothing"
        raise GlocalError(f"data: expected a folder of images, got {what} at {printable(name)}")
    return Path(name)


def _check_coco(files: dict[str, coco.CocoFile], reading: Reading) -> tuple[Parts, dict[int, str], list[str]]:
    first = next(iter(files.values()))
    categories = first.categories
    for file in files.values():
        others = [f"{printable(name)} ({key})" for key, name in file.categories.items() if categories.get(key) != name]
        if others:
            raise GlocalError(
                f"data: expected the categories of {printable(first.file)} in {printable(file.file)}, got others: "
                f"{', '.join(others[:5])}; give each category the same id and name in both"
            )
    return {part: coco.check_coco(file, categories, reading) for part, file in files.items()}, categories, []


def _check_voc(root: Path, reading: Reading) -> tuple[Parts, dict[int, str], list[str]]:
    follow_links = reading.follow_links
    check_no_link(root, root / "Annotations", follow_links=follow_links)
    images = voc.find_images(root, follow_links=follow_links)
    lists = voc.list_parts(root, "Main", "Annotations", ".xml", follow_links=follow_links)
    parts = {part: voc.read_voc(root, stems, images, follow_links=follow_links) for part, stems in lists.items()}
    classes = next(iter(parts.values())).classes
    checked = {part: voc.check_voc(read, classes, reading) for part, read in parts.items()}
    unlisted = [
        file for stem, file in images.items() if stem not in {stem for stems in lists.values() for stem in stems}
    ]
    warnings = [f"ignored, not listed in ImageSets/Main: {some(sorted(unlisted))}"] * bool(unlisted)
    return checked, dict(enumerate(classes)), warnings


def _hold_out(checked: CheckedPart, seed: int, fraction: float) -> tuple[dict[str, np.ndarray], str]:
    names = checked.store.names
    if len(names) < 2:
        raise GlocalError(f"data: expected at least 2 usable images, to hold one out for val, got {len(names)}")
    held = set(hold_out({"": list(names)}, seed, fraction)[1][""])
    is_held = np.array([name in held for name in names])
    rows = {"train": np.flatnonzero(~is_held), "val": np.flatnonzero(is_held)}
    return rows, f"{fraction:.0%} of the images held out for val, split seed {seed}"


def _source(
    name: str,
    parts: Parts,
    rows: dict[str, np.ndarray],
    categories: dict[int, str],
    skipped: tuple[Skipped, ...],
    warnings: list[str],
    split: str,
) -> DetectionSource:
    classes = tuple(categories.values())
    counts = {part: parts[part].store.counts(rows[part], len(classes)) for part in rows}
    if not classes or not counts["train"].any():
        raise GlocalError(f"data: expected objects in train of {printable(name)}, got no usable ones")
    digest = hashlib.sha256(repr(categories).encode())
    sets = {}
    for part, of_part in rows.items():
        checked = parts[part]
        digest.update(f"{part}\n".encode())
        for row in of_part:
            digest.update(checked.digests[row].encode())
            checked.store.update(digest, row)
        sets[part] = DetectionSet(part, classes, tuple(checked.paths[row] for row in of_part), checked.store, of_part)
    return DetectionSource(
        name=name,
        train=sets["train"],
        val=sets["val"],
        classes=classes,
        skipped=skipped,
        warnings=(*warnings, *_warnings(parts, rows, classes, counts)),
        split=split,
        fingerprint=digest.hexdigest(),
        category_ids=tuple(categories),
        counts=counts,
    )


def _warnings(
    parts: Parts, rows: dict[str, np.ndarray], classes: tuple[str, ...], counts: dict[str, np.ndarray]
) -> tuple[str, ...]:
    """Warnings about valid data."""
    warnings: list[str] = []
    whole = {id(checked): checked for checked in parts.values()}.values()  # a split part is listed twice
    for checked in whole:
        warnings += checked.notes
    if clipped := sum(checked.clipped for checked in whole):
        warnings.append(f"boxes clipped to their image by more than a pixel: {clipped}")
    for part in rows:
        if without := [cls for cls, count in zip(classes, counts[part], strict=True) if not count]:
            warnings.append(f"classes without objects in {part}: {some(without)}")
    twins = [[(parts[part].paths[row], parts[part].digests[row]) for row in rows[part]] for part in ("train", "val")]
    return (*dict.fromkeys(warnings), *warn_of_duplicates(*twins))
