"""Data for semantic segmentation: folders in the layouts of ADE20K, Cityscapes, Pascal VOC or a plain one."""

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from glocal.data import pasted, voc
from glocal.data.annotated import Reading
from glocal.data.folder import hold_out
from glocal.data.images import ImageLimits
from glocal.data.label_maps import IGNORE, LabelMaps, SegmentationSet, SegmentationSource
from glocal.data.listing import check_no_link, empty_part_error, read_classes, read_lines, unusable_error, walk
from glocal.data.measured import Kind, Measured, measure_files
from glocal.data.sets import Skipped, some, warn_of_duplicates
from glocal.errors import GlocalError, check_choice, nearest
from glocal.files import printable

VAL_NAMES = ("val", "valid", "validation")
CLASS_FILE = "classes.txt"
ADE_FILE = "objectInfo150.txt"  # of ADE20K's release
ADE_CLASSES = 150
CITYSCAPES = {  # id -> class, in the order of the 19 train ids (cityscapesScripts, labels.py)
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
CITYSCAPES_IDS = 34
VOC_CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


@dataclass(frozen=True)
class FolderLayout:
    """Pairs of images and label maps, and the meaning of their values.

    Attributes:
        root: names are relative to it.
        pairs: part ("train" and "val", or "" for images to be split) -> image -> label map.
        classes: names; None if they are to be counted from the values.
        labels: (256,) int64, value -> label, -1 for none; None likewise.
        skipped: images without label maps, and label maps without images.
        links: not followed.
    """

    root: Path
    pairs: dict[str, dict[str, str]]
    classes: tuple[str, ...] | None
    labels: np.ndarray | None
    skipped: tuple[Skipped, ...]
    links: tuple[str, ...]


def load_segmentation(
    data: str | Path,
    *,
    on_error: Literal["stop", "skip"] = "stop",
    split_seed: int = 0,
    val_fraction: float = 0.2,
    follow_links: bool = False,
    progress: bool = True,
    workers: int | None = None,
    limits: ImageLimits | None = None,
) -> SegmentationSource:
    """Load a segmentation data set and split it into train and val; every image and label map is decoded once.

    Args:
        data: a folder in the layout of ADE20K (``images/training``, ``annotations/training``), Cityscapes
            (``leftImg8bit``, ``gtFine``), Pascal VOC (``JPEGImages``, ``SegmentationClass``) or a plain one
            (``images``, ``masks``); or items-on-photos, items-on-photos:SIZE (docs/data-detection.md).
        on_error: "stop" at unusable files, or "skip" and list them.
        split_seed: of the held-out split, if there is no val.
        val_fraction: fraction of the images that is held out then.
        follow_links: whether links inside a folder are followed.
        progress: show progress bars.
        workers: decoding processes; one per CPU core by default.
        limits: of the image loader.

    Raises:
        GlocalError: if the data is missing, a part is empty, or (with "stop") a file is unusable.
    """
    check_choice("on_error", on_error, ("stop", "skip"))
    if not 0 < val_fraction < 1:
        raise GlocalError(f"val_fraction: expected a number between 0 and 1, got {val_fraction}")
    name = os.fspath(data)
    if pasted.is_pasted(name):
        return pasted.label_maps_of_items(pasted.size_of(name))
    layout = read_layout(Path(name), follow_links=follow_links)
    reading = Reading(limits or ImageLimits(), follow_links, progress, workers)
    return _check(name, layout, reading, on_error, split_seed, val_fraction)


def read_layout(root: Path, *, follow_links: bool = False) -> FolderLayout:
    """Find the label map of each image of a folder.

    Raises:
        GlocalError: if the folder has none of the layouts.
    """
    if not root.is_dir():
        what = "a file" if root.exists() else "nothing"
        hint = nearest(os.fspath(root), [pasted.NAME])
        raise GlocalError(f"data: expected a folder or {pasted.NAME}, got {what} at {printable(root)}{hint}")

    def both(images: str, maps: str) -> bool:
        return (root / images).is_dir() and (root / maps).is_dir()

    if both("images/training", "annotations/training"):
        return _ade(root, follow_links)
    if both("leftImg8bit/train", "gtFine/train"):
        return _cityscapes(root, follow_links)
    if both("JPEGImages", "SegmentationClass"):
        return _voc(root, follow_links)
    if both("images", "masks"):
        return _plain(root, follow_links)
    raise GlocalError(
        f"data: expected images and masks (plain), images/training and annotations/training (ADE20K), "
        f"leftImg8bit/train and gtFine/train (Cityscapes), or JPEGImages and SegmentationClass (Pascal VOC) in "
        f"{printable(root)}, got none of these pairs of folders"
    )


# Layouts


def _ade(root: Path, follow_links: bool) -> FolderLayout:
    """0 is ignored; 1 to 150 are the classes."""
    parts = {"train": "training", "val": "validation"}
    if not (root / "images" / "validation").is_dir():
        parts = {"": "training"}
    folders = {part: (f"images/{name}", f"annotations/{name}") for part, name in parts.items()}
    classes = _read_class_file(root, follow_links)
    if classes is None and (root / ADE_FILE).exists():
        rows = [
            line.split("\t") for line in read_lines(check_no_link(root, root / ADE_FILE, follow_links=follow_links))
        ]
        classes = tuple(row[-1] for row in rows if row[0].isdecimal() and len(row) > 1)
    classes = classes or tuple(str(number) for number in range(1, ADE_CLASSES + 1))
    labels = _labels(root, classes, first=1)
    labels[0] = IGNORE
    return _layout(root, folders, _stem, _stem, classes, labels, follow_links)


def _cityscapes(root: Path, follow_links: bool) -> FolderLayout:
    parts = ("train", "val") if (root / "leftImg8bit/val").is_dir() else ("train",)
    folders = {part if "val" in parts else "": (f"leftImg8bit/{part}", f"gtFine/{part}") for part in parts}

    def without(suffix: str) -> Callable[[str], str | None]:
        return lambda name: name.removesuffix(suffix) if name.endswith(suffix) else None

    image = without("_leftImg8bit.png")
    classes = tuple(CITYSCAPES.values())
    labels = _labels(root, classes)
    layout = _layout(root, folders, image, without("_gtFine_labelTrainIds.png"), classes, labels, follow_links)
    if not layout.skipped:
        return layout
    labels = labels.copy()
    labels[:CITYSCAPES_IDS] = IGNORE
    labels[list(CITYSCAPES)] = np.arange(len(classes))
    by_id = _layout(root, folders, image, without("_gtFine_labelIds.png"), classes, labels, follow_links)
    return min(by_id, layout, key=lambda one: len(one.skipped))


def _voc(root: Path, follow_links: bool) -> FolderLayout:
    check_no_link(root, root / "SegmentationClass", follow_links=follow_links)
    images = voc.find_images(root, follow_links=follow_links)
    lists = voc.list_parts(root, "Segmentation", "SegmentationClass", ".png", follow_links=follow_links)
    files, links = walk(root / "SegmentationClass", follow_links=follow_links)
    maps = {_stem(name): os.path.join("SegmentationClass", name) for name in files if name.endswith(".png")}
    pairs: dict[str, dict[str, str]] = {}
    skipped = []
    for part, stems in lists.items():
        pairs[part] = {}
        for stem in stems:
            if stem not in images:
                skipped.append(
                    Skipped(os.path.join("JPEGImages", stem), "no such file (in JPEGImages, with any extension)")
                )
            elif stem not in maps:
                skipped.append(Skipped(images[stem], "no label map of this name"))
            else:
                pairs[part][images[stem]] = maps[stem]
    classes = _read_class_file(root, follow_links) or VOC_CLASSES
    links = [os.path.join("SegmentationClass", link) for link in links]
    return FolderLayout(root, pairs, classes, _labels(root, classes), tuple(skipped), tuple(links))


def _plain(root: Path, follow_links: bool) -> FolderLayout:
    folders = {"": ("images", "masks")}
    if (root / "images/train").is_dir():
        folders = {"": ("images/train", "masks/train")}
        if val := next((name for name in VAL_NAMES if (root / "images" / name).is_dir()), None):
            folders = {"train": folders[""], "val": (f"images/{val}", f"masks/{val}")}
    classes = _read_class_file(root, follow_links)
    labels = _labels(root, classes) if classes else None
    return _layout(root, folders, _stem, _stem, classes, labels, follow_links)


def _layout(
    root: Path,
    folders: dict[str, tuple[str, str]],
    image_key: Callable[[str], str | None],
    map_key: Callable[[str], str | None],
    classes: tuple[str, ...] | None,
    labels: np.ndarray | None,
    follow_links: bool,
) -> FolderLayout:
    """Pair what has the same key in the two folders of each part; names without a key are ignored."""
    pairs, skipped, unfollowed = {}, [], []
    for part, of_part in folders.items():
        found: list[dict[str, str]] = []
        for folder, key in zip(of_part, (image_key, map_key), strict=True):
            check_no_link(root, root / folder, follow_links=follow_links)
            names, links = walk(root / folder, follow_links=follow_links)
            unfollowed += [os.path.join(folder, link) for link in links]
            found.append({})
            for name in names:
                path = os.path.join(folder, name)
                if (of_name := key(name)) is not None and (first := found[-1].setdefault(of_name, path)) != path:
                    skipped.append(Skipped(path, f"the same name as {printable(first)}"))
        images, maps = found
        pairs[part] = {images[name]: maps[name] for name in images if name in maps}
        skipped += [
            Skipped(images[name], f"no label map of this name in {of_part[1]}") for name in images if name not in maps
        ]
        skipped += [
            Skipped(maps[name], f"no image of this name in {of_part[0]}") for name in maps if name not in images
        ]
    return FolderLayout(root, pairs, classes, labels, tuple(skipped), tuple(unfollowed))


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def _read_class_file(root: Path, follow_links: bool) -> tuple[str, ...] | None:
    file = root / CLASS_FILE
    return read_classes(check_no_link(root, file, follow_links=follow_links)) if os.path.lexists(file) else None


def _labels(root: Path, classes: tuple[str, ...], first: int = 0) -> np.ndarray:
    """Value -> label, (256,) int64, with class values from ``first`` on; -1 for values without a class.

    Raises:
        GlocalError: for fewer than two classes, or more than values.
    """
    if not 2 <= len(classes) <= IGNORE - first:
        raise GlocalError(
            f"data: expected 2 to {IGNORE - first} classes in {printable(root)} (the background is one; {IGNORE} "
            f"marks ignored pixels), got {len(classes)}"
        )
    labels = np.full(IGNORE + 1, -1, dtype=np.int64)
    labels[first : first + len(classes)] = np.arange(len(classes))
    labels[IGNORE] = IGNORE
    return labels


# Checks


def _check(
    name: str, layout: FolderLayout, reading: Reading, on_error: str, split_seed: int, val_fraction: float
) -> SegmentationSource:
    images = [image for pairs in layout.pairs.values() for image in pairs]
    maps = [label_map for pairs in layout.pairs.values() for label_map in pairs.values()]
    found = _measure(layout.root, images, "image", reading) | _measure(layout.root, maps, "labels", reading)
    classes, labels = layout.classes, layout.labels
    if classes is None or labels is None:
        first = next(iter(layout.pairs.values()))
        classes = _count_classes(name, (found[label_map] for label_map in first.values()))
        labels = _labels(layout.root, classes)
    skipped = list(layout.skipped)
    good: dict[str, dict[str, str]] = {part: {} for part in layout.pairs}
    for part, pairs in layout.pairs.items():
        for image, label_map in pairs.items():
            reasons = [Skipped(path, reason) for path in (image, label_map) if (reason := found[path].reason)]
            if not reasons and (reason := _misfit(found[image], found[label_map], labels, len(classes))):
                reasons = [Skipped(label_map, reason)]
            if reasons:
                skipped += reasons
            else:
                good[part][image] = label_map
    skipped = sorted(dict.fromkeys(skipped), key=lambda bad: bad.path)
    if skipped and on_error == "stop":
        raise unusable_error(name, skipped, "segment")
    for part, pairs in good.items():
        if not pairs:
            raise empty_part_error(name, part, skipped)
    split = "train and val as in the data"
    if "" in good:
        good, split = _hold_out(good[""], split_seed, val_fraction)
    return _source(name, layout, reading, classes, labels, good, found, tuple(skipped), split)


def _measure(root: Path, names: list[str], kind: Kind, reading: Reading) -> dict[str, Measured]:
    return measure_files(
        root,
        list(dict.fromkeys(names)),
        reading.limits,
        kind=kind,
        follow_links=reading.follow_links,
        progress=reading.progress,
        workers=reading.workers,
    )


def _count_classes(name: str, maps: Iterable[Measured]) -> tuple[str, ...]:
    """Classes 0 to the largest value in train, named by their numbers."""
    values = {value for one in maps if one.reason is None for value in one.values if value < IGNORE}
    if values == {0}:
        raise GlocalError(
            f"data: expected label maps with values from 0 to the number of classes in {printable(name)}, got only "
            f"0 and {IGNORE} (ignored pixels); store the class as 1, not as {IGNORE}"
        )
    return tuple(str(value) for value in range(max(values, default=1) + 1))


def _misfit(image: Measured, label_map: Measured, labels: np.ndarray, num_classes: int) -> str | None:
    if image.size != label_map.size:
        sizes = f"{label_map.size[0]} x {label_map.size[1]}, not {image.size[0]} x {image.size[1]}"
        return f"label map size differs from its image ({sizes})"
    if others := [value for value in label_map.values if value > IGNORE or labels[value] < 0]:
        shown = ", ".join(map(str, others[:5])) + ", ..." * (len(others) > 5)
        return f"label map has values without a class ({shown}; there are {num_classes} classes)"
    return None


def _hold_out(pairs: dict[str, str], seed: int, fraction: float) -> tuple[dict[str, dict[str, str]], str]:
    if len(pairs) < 2:
        raise GlocalError(f"data: expected at least 2 usable images, to hold one out for val, got {len(pairs)}")
    held = set(hold_out({"": list(pairs)}, seed, fraction)[1][""])
    parts = {
        "train": {image: label_map for image, label_map in pairs.items() if image not in held},
        "val": {image: label_map for image, label_map in pairs.items() if image in held},
    }
    return parts, f"{fraction:.0%} of the images held out for val, split seed {seed}"


def _source(
    name: str,
    layout: FolderLayout,
    reading: Reading,
    classes: tuple[str, ...],
    labels: np.ndarray,
    parts: dict[str, dict[str, str]],
    found: dict[str, Measured],
    skipped: tuple[Skipped, ...],
    split: str,
) -> SegmentationSource:
    digest = hashlib.sha256(repr(classes).encode())
    digest.update(labels.tobytes())
    sets, counts = {}, {}
    for part, pairs in parts.items():
        for image, label_map in pairs.items():
            record = f"{part}\0{image}\0{found[image].digest}\0{found[label_map].digest}\n"
            digest.update(record.encode("utf-8", "surrogateescape"))
        store = LabelMaps(
            layout.root, tuple(pairs), tuple(pairs.values()), labels, reading.limits, reading.follow_links
        )
        sets[part] = SegmentationSet(part, classes, tuple(pairs), store, np.arange(len(pairs)))
        shown = [np.unique(labels[list(found[label_map].values)]) for label_map in pairs.values()]
        counts[part] = np.bincount(np.concatenate(shown), minlength=IGNORE + 1)[: len(classes)]
    warnings = []
    if layout.links:
        warnings.append(f"links were not followed: {some(list(layout.links))}; --follow-links follows them")
    for part in parts:
        if without := [cls for cls, count in zip(classes, counts[part], strict=True) if not count]:
            warnings.append(f"classes without pixels in {part}: {some(without)}")
    twins = [[(image, found[image].digest) for image in parts[part]] for part in ("train", "val")]
    return SegmentationSource(
        name=name,
        train=sets["train"],
        val=sets["val"],
        classes=classes,
        skipped=skipped,
        warnings=(*warnings, *warn_of_duplicates(*twins)),
        split=split,
        fingerprint=digest.hexdigest(),
        counts=counts,
    )
