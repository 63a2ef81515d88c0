"""Image loader, data sets with labels, boxes or masks, and built-in data sets."""

import hashlib
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from glocal.data import builtin, pasted, probes
from glocal.data.detection import load_detection
from glocal.data.folder import (
    TEST,
    Checked,
    check_classes,
    check_same_classes,
    check_test_classes,
    check_tree,
    hold_out,
    read_tree,
)
from glocal.data.images import ImageError, ImageLimits, open_image, open_label_map
from glocal.data.label_maps import IGNORE, SegmentationSample, SegmentationSet, SegmentationSource
from glocal.data.objects import DetectionSample, DetectionSet, DetectionSource, SkippedObject
from glocal.data.predictions import ImageDetections, write_coco_results, write_label_map
from glocal.data.segmentation import load_segmentation
from glocal.data.sets import DataSource, Folder, ImageSet, Skipped, some, warn_of_duplicates
from glocal.data.shard_names import is_shards
from glocal.data.shards import CheckedShards, check_shards, shuffled, split_shards
from glocal.errors import GlocalError, nearest
from glocal.files import printable
from glocal.formatting import few

__all__ = [
    "IGNORE",
    "Checked",
    "CheckedShards",
    "DataSource",
    "DetectionSample",
    "DetectionSet",
    "DetectionSource",
    "ImageDetections",
    "ImageError",
    "ImageLimits",
    "ImageSet",
    "SegmentationSample",
    "SegmentationSet",
    "SegmentationSource",
    "Skipped",
    "SkippedObject",
    "builtin_names",
    "check_folder",
    "load_data",
    "load_detection",
    "load_segmentation",
    "open_image",
    "open_label_map",
    "shuffled",
    "split_folder",
    "write_coco_results",
    "write_label_map",
]

_BUILTIN: dict[str, Callable[[], DataSource]] = {
    "fashion-mini": builtin.fashion_mini,
    "fashion-mnist": builtin.fashion_mnist,
}


def builtin_names() -> tuple[str, ...]:
    """Names that `load_data` accepts instead of a folder."""
    return (*_BUILTIN, *probes.PROBES)


def load_data(
    source: str | Path,
    *,
    on_error: Literal["stop", "skip"] = "stop",
    split_seed: int = 0,
    val_fraction: float = 0.2,
    follow_links: bool = False,
    limits: ImageLimits | None = None,
    progress: bool = True,
    workers: int | None = None,
) -> DataSource:
    """Load a data set and split it into train and val; every image is decoded once.

    Args:
        source: a folder of images; shards, as a folder or a pattern (``train-{000..099}.tar``); or a built-in name:
            fashion-mini, fashion-mnist, fashion-mnist:FOLDER, or a probe (`glocal.data.probes`): texture, pathfinder,
            arrangement, mix, each also with a distance in pixels, as in pathfinder:14.
        on_error: "stop" at unreadable images, or "skip" and list them.
        split_seed: of the held-out split, if there is no val.
        val_fraction: fraction of each class that is held out then.
        follow_links: whether links in a folder of images are followed, each file and folder once.
        limits: of the image loader.
        progress: show progress bars.
        workers: decoding processes; one per CPU core by default.

    Raises:
        GlocalError: if the data is missing, a class is empty or missing, there is only one, or (with "stop") an image
            is unreadable.
    """
    if on_error not in ("stop", "skip"):
        raise GlocalError(f"on_error: expected stop or skip, got {on_error}")
    name = os.fspath(source)
    if name in _BUILTIN:
        return _BUILTIN[name]()
    if probes.is_probe(name):
        return probes.load_probe(name)
    if name.startswith("fashion-mnist:"):
        return builtin.fashion_mnist(name.partition(":")[2])
    checked = check_folder(name, follow_links=follow_links, limits=limits, progress=progress, workers=workers)
    if checked.skipped and on_error == "stop":
        raise GlocalError(_unreadable(name, checked.skipped))
    return split_folder(checked, split_seed=split_seed, val_fraction=val_fraction)


def check_folder(
    source: str | Path,
    *,
    follow_links: bool = False,
    limits: ImageLimits | None = None,
    progress: bool = True,
    workers: int | None = None,
) -> Checked | CheckedShards:
    """Decode every image of a folder or of shards once; unreadable images are listed, not raised.

    Raises:
        GlocalError: if the folder or the shards are missing, the folder has no class folders, or the class names of the
            shards conflict.
    """
    name = os.fspath(source)
    if pasted.is_pasted(name):
        raise GlocalError(f"data: expected images with a class each, got {pasted.NAME}, a detection data set")
    if is_shards(name):
        return check_shards(name, limits or ImageLimits(), progress=progress, workers=workers)
    if not os.path.exists(name):
        known = f"a folder or one of {', '.join(builtin_names())}"
        hint = nearest(name, builtin_names())
        raise GlocalError(f"data: expected {known}, got {printable(name)}, which is neither{hint}")
    tree = read_tree(Path(name), follow_links=follow_links)
    return check_tree(tree, limits or ImageLimits(), follow_links=follow_links, progress=progress, workers=workers)


def split_folder(checked: Checked | CheckedShards, *, split_seed: int = 0, val_fraction: float = 0.2) -> DataSource:
    """Split the readable images: train, val and perhaps test as given, or a held-out fraction of each class.

    Raises:
        GlocalError: if test has a class that train has not, if a class is empty or missing, or there is only one.
    """
    if isinstance(checked, CheckedShards):
        return split_shards(checked, split_seed=split_seed, val_fraction=val_fraction)
    test: dict[str, list[str]] = {}
    if "train" in checked.tree.parts:
        train, val = checked.good("train"), checked.good("val")
        check_same_classes(train, val)
        check_classes(train, "train", needed=1)
        check_classes(val, "val", needed=1)
        test = checked.good(TEST)
        check_test_classes(train, test, checked.tree.root)
        split = "train and val as in the folder"
    else:
        if not 0 < val_fraction < 1:
            raise GlocalError(f"val_fraction: expected a number between 0 and 1, got {val_fraction}")
        whole = checked.good("")
        check_classes(whole, "", needed=2)
        train, val = hold_out(whole, split_seed, val_fraction)
        split = f"{val_fraction:.0%} of each class held out for val, split seed {split_seed}"
    classes = tuple(sorted(train))
    store = Folder(checked.tree.root, checked.limits, checked.follow_links)
    parts = {"train": train, "val": val} | ({TEST: test} if any(test.values()) else {})
    return DataSource(
        name=os.fspath(checked.tree.root),
        train=_image_set("train", classes, train, store),
        val=_image_set("val", classes, val, store),
        classes=classes,
        skipped=checked.skipped,
        warnings=_warnings(checked, parts),
        split=split,
        fingerprint=_fingerprint(classes, parts, checked),
        test=_image_set(TEST, classes, test, store) if TEST in parts else None,
    )


def _image_set(name: str, classes: tuple[str, ...], paths: dict[str, list[str]], store: Folder) -> ImageSet:
    flat = [(path, label) for label, cls in enumerate(classes) for path in paths.get(cls, ())]
    labels = np.array([label for _, label in flat], dtype=np.int64)
    return ImageSet(name, classes, labels, tuple(path for path, _ in flat), store, np.arange(len(flat)))


def _warnings(checked: Checked, parts: dict[str, dict[str, list[str]]]) -> tuple[str, ...]:
    """Warnings about a valid folder."""
    warnings = []
    if unused := checked.tree.unused:
        warnings.append(f"ignored, outside the class folders: {some(unused)}")
    if links := checked.tree.links:
        warnings.append(f"links were not followed: {some(links)}; --follow-links follows them")
    digests = {
        name: [(path, checked.files[path].digest) for paths in part.values() for path in paths]
        for name, part in parts.items()
    }
    warnings += warn_of_duplicates(digests["train"], digests["val"])
    if TEST in checked.tree.parts:
        test = parts.get(TEST, {})
        if missing := [name for name in parts["train"] if not test.get(name)]:
            warnings.append(f"classes without images in {TEST}: {some(missing)}")
        for other in ("train", "val"):
            warnings += warn_of_duplicates(digests[other], digests.get(TEST, []), part=TEST, other=other)
    return tuple(warnings)


def _fingerprint(classes: tuple[str, ...], parts: dict[str, dict[str, list[str]]], checked: Checked) -> str:
    digest = hashlib.sha256()
    for part, of_class in parts.items():
        for name in classes:
            for path in of_class.get(name, ()):
                record = f"{part}\0{name}\0{path}\0{checked.files[path].digest}\n"
                digest.update(record.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _unreadable(name: str, skipped: tuple[Skipped, ...]) -> str:
    shown = few(skipped, 5, "\n  ", show=lambda bad: f"{printable(bad.path)}: {printable(bad.reason)}")
    return (
        f"data: expected only readable images in {printable(name)}, got {len(skipped)} unreadable\n  {shown}"
        f"\n`glocal check {printable(shlex.quote(name))}` lists all; --on-error skip leaves them out"
    )
