"""COCO's JSON: images, categories, and objects with boxes, polygons or run lengths.

Microsoft COCO: Lin et al. 2014, https://arxiv.org/abs/1405.0312; the format is at https://cocodataset.org/#format-data.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from glocal.data.annotated import (
    CheckedPart,
    ListedImage,
    Object,
    ObjectError,
    Reading,
    clip_box,
    collect,
    measure_images,
)
from glocal.data.listing import LONGEST_CLASS, Inside, check_no_link, read_json
from glocal.data.measured import Measured
from glocal.data.objects import SkippedObject
from glocal.data.rle import MaskError, check_counts, check_polygon, decode_counts
from glocal.data.sets import Skipped
from glocal.errors import GlocalError
from glocal.files import printable

PART_WORDS = {"train": ("train",), "val": ("val", "valid", "validation")}
PLACES = ("annotations/instances_{}*.json", "annotations/{}*.json", "{}/_annotations.coco.json")
NUM_PROBED = 100  # images used to find their folder
MOST_AREA = 1e12  # square pixels
MOST_ID = 2**63


@dataclass(frozen=True)
class CocoFile:
    """A parsed annotation file; no image is opened yet.

    Attributes:
        file: of annotations.
        folder: of images.
        root: names in messages are relative to it.
        categories: id -> name, by id.
        images: valid ones, with distinct ids and files inside the folder.
        image_ids: of all images, unusable ones included.
        annotations: unchecked entries.
        skipped: unusable images.
    """

    file: Path
    folder: Path
    root: Path
    categories: dict[int, str]
    images: tuple[ListedImage, ...]
    image_ids: frozenset[int | str]
    annotations: Sequence[object]
    skipped: tuple[Skipped, ...]

    def shown(self, path: Path) -> str:
        """Name of a file in messages."""
        return _shown(path, self.root)


def find_coco(root: Path, *, follow_links: bool = False) -> dict[str, Path]:
    """Part -> annotation file of a folder in COCO's layout; empty if there is none.

    Raises:
        GlocalError: if there are several files for a part, or one for val alone.
    """
    files: dict[str, Path] = {}
    for part, words in PART_WORDS.items():
        for place in PLACES:
            found = sorted({file for word in words for file in root.glob(place.format(word))})
            if len(found) > 1:
                names = ", ".join(printable(file.relative_to(root)) for file in found)
                raise GlocalError(
                    f"data: expected one annotation file for {part} in {printable(root)}, got {names}; "
                    f"choose with train=FILE.json:FOLDER,val=FILE.json:FOLDER"
                )
            if found:
                files[part] = check_no_link(root, found[0], follow_links=follow_links)
                break
    if files and "train" not in files:
        got = printable(files["val"].relative_to(root))
        raise GlocalError(f"data: expected annotations/instances_train*.json in {printable(root)}, got only {got}")
    return files


def read_coco(file: Path, root: Path, folder: Path | None = None, *, follow_links: bool = False) -> CocoFile:
    """Read an annotation file, find its images, check its categories and image entries.

    For ``annotations/instances_train2017.json`` the images are searched in ``train2017``, ``images/train2017``,
    ``train``, ``images/train``, ``images``, the folder of the file, and the root.

    Args:
        file: the annotation file.
        root: contains the image folder; names in messages are relative to it.
        folder: of images, if known.
        follow_links: whether links may lead out of the image folder.

    Raises:
        GlocalError: if the file is not COCO JSON, its categories are ambiguous, or its images are in none of these
            folders.
    """
    content = read_json(file)
    wanted = ("images", "annotations", "categories")
    lists = {name: content.get(name) if isinstance(content, dict) else None for name in wanted}
    if lacking := [name for name, value in lists.items() if not isinstance(value, list)]:
        raise GlocalError(
            f"data: expected COCO's lists images, annotations and categories in {printable(file)}, "
            f"got no list {' and no list '.join(lacking)}"
        )
    if not lists["images"]:
        raise GlocalError(f"data: expected images in {printable(file)}, got an empty list")
    folder = folder or _find_images(lists["images"], file, root, follow_links=follow_links)
    images, skipped, ids = _images(lists["images"], _shown(file, root), Inside(folder, follow_links=follow_links))
    categories = _categories(lists["categories"] or [], file)
    return CocoFile(file, folder, root, categories, images, ids, lists["annotations"] or [], skipped)


def _find_images(entries: list[object], file: Path, root: Path, *, follow_links: bool) -> Path:
    """The folder in which most of the first images are."""
    word = file.stem.removeprefix("instances_")
    words = dict.fromkeys((word, re.sub(r"\d+$", "", word)))
    if any(word.startswith("val") for word in words):
        words |= dict.fromkeys(PART_WORDS["val"])
    places = [place for word in words for place in (root / word, root / "images" / word)]
    places = list(dict.fromkeys(place for place in (*places, root / "images", file.parent, root) if place.is_dir()))
    inside = Inside(root, follow_links=True)
    names: list[Any] = [entry.get("file_name") for entry in entries[:NUM_PROBED] if isinstance(entry, dict)]
    names = [name for name in names if inside.problem(name) is None]
    if not names:
        raise GlocalError(f"data: expected images with a file_name in {printable(file)}, got none among the first")
    counts = [sum(os.path.lexists(place / name) for name in names) for place in places]
    if max(counts) == 0:
        searched = ", ".join(printable(os.path.relpath(place, root)) for place in places)
        raise GlocalError(
            f"data: expected the images of {printable(file)} in {printable(root)} ({searched}), got none of the first "
            f"{len(names)} there; give their folder: {printable(file)}:FOLDER"
        )
    return check_no_link(root, places[int(np.argmax(counts))], follow_links=follow_links)


def _shown(path: Path, root: Path) -> str:
    relative = os.path.relpath(path, root)
    return os.fspath(path) if relative.startswith("..") else relative


def _categories(entries: list[object], file: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for place, entry in enumerate(entries):
        key = entry.get("id") if isinstance(entry, dict) else None
        name = entry.get("name") if isinstance(entry, dict) else None
        problem = ""
        if type(key) is not int or abs(key) >= MOST_ID:
            problem = "an id that is not an integer"
        elif not isinstance(name, str) or not name.strip() or not _is_text(name):
            problem = "no name"
        elif len(name) > LONGEST_CLASS:
            problem = f"a name of {len(name)} characters"
        elif key in names:
            problem = f"the id {key} twice"
        if problem:
            raise GlocalError(
                f"data: expected categories with id and name in {printable(file)}, got {problem} in categories[{place}]"
            )
        names[int(key or 0)] = str(name)
    if not names:
        raise GlocalError(f"data: expected at least one category in {printable(file)}, got none")
    number = Counter(names.values())
    return {key: name if number[name] == 1 else f"{name} ({key})" for key, name in sorted(names.items())}


def _images(
    entries: list[object], shown: str, inside: Inside
) -> tuple[tuple[ListedImage, ...], tuple[Skipped, ...], frozenset[int | str]]:
    """Usable images, unusable ones, and the ids of all."""
    images: dict[int | str, ListedImage] = {}
    skipped = []
    ids = set()
    names: dict[str, int | str] = {}
    for place, entry in enumerate(entries):
        path, reason = f"{shown}: images[{place}]", ""
        if not isinstance(entry, dict):
            reason = "expected an object, got something else"
        elif not _is_id(key := entry.get("id")):
            reason = "no id (expected an integer or text)"
        else:
            name: Any = entry.get("file_name")
            size: Any = entry.get("width"), entry.get("height")
            if key in ids:
                reason = f"the same id as another image ({printable(str(key))[:100]})"
            elif problem := inside.problem(name):
                reason = problem
            elif size != (None, None) and not all(type(side) is int and 0 < side < MOST_ID for side in size):
                reason = "invalid width or height"
            elif (first := names.setdefault(os.path.normpath(name), key)) != key:
                reason = f"the same file as another image (id {printable(str(first))[:100]})"
            else:
                images[key] = ListedImage(os.path.normpath(name), key, None if size == (None, None) else size)
            ids.add(key)
        if reason:
            skipped.append(Skipped(path, reason))
    return tuple(images.values()), tuple(skipped), frozenset(ids)


def check_coco(file: CocoFile, categories: dict[int, str], reading: Reading) -> CheckedPart:
    """Decode every listed image and check every object; faults are listed, not raised.

    Args:
        file: from `read_coco`.
        categories: id -> name of the classes, by id.
        reading: options.
    """
    shown = {image.name: file.shown(file.folder / image.name) for image in file.images}
    good, bad = measure_images(file.folder, shown, file.images, reading)
    labels = {key: label for label, key in enumerate(categories)}
    objects: dict[int | str, list[Object]] = {key: [] for key in good}
    skipped: list[Skipped] = [*file.skipped, *bad]
    seen: set[int | str] = set()
    annotations = file.shown(file.file)
    clipped = 0
    for place, entry in enumerate(file.annotations):
        path = annotations
        name: int | str = f"#{place}"
        try:
            if not isinstance(entry, dict):
                raise ObjectError("expected an object, got something else")
            key, image_id = entry.get("id"), entry.get("image_id")
            if not _is_id(key):
                raise ObjectError("no id (expected an integer or text)")
            name = key
            if not _is_id(image_id) or image_id not in file.image_ids:
                raise ObjectError("unknown image")
            if image_id not in good:
                continue  # its image is unusable and already listed
            image, measured = good[image_id]
            path = shown[image.name]
            if key in seen:
                raise ObjectError("the same id as another annotation")
            seen.add(key)
            one, stood_out = _object(entry, measured, labels)
            objects[image_id].append(one)
            clipped += stood_out
        except (ObjectError, MaskError) as error:
            skipped.append(SkippedObject(path, str(error), name))
    return collect(
        file.folder, shown, list(good.values()), list(objects.values()), reading, skipped=skipped, clipped=clipped
    )


def _object(entry: dict[str, Any], measured: Measured, labels: dict[int, int]) -> tuple[Object, bool]:
    """An annotation -> object, and whether its box was clipped.

    Raises:
        ObjectError: if it is unusable.
        MaskError: if its mask is invalid.
    """
    width, height = measured.size
    category = entry.get("category_id")
    if type(category) is not int or category not in labels:
        raise ObjectError("unknown category" + (f" ({str(category)[:100]})" if type(category) is int else ""))
    crowd = entry.get("iscrowd", 0)
    if crowd not in (0, 1) or not isinstance(crowd, int):
        raise ObjectError("iscrowd is neither 0 nor 1")
    bbox = entry.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4:
        raise ObjectError("no box (expected bbox with 4 numbers)")
    x, y, w, h = _numbers(bbox, "box")
    box, stood_out = clip_box((x, y, x + w, y + h), width, height)
    area = float("nan")
    if entry.get("area") is not None:
        (area,) = _numbers([entry["area"]], "area")
        if not 0 < area < MOST_AREA:
            raise ObjectError(f"invalid area ({area:g})")
    polygons, counts = _outline(entry.get("segmentation"), height, width)
    return Object(box, labels[category], bool(crowd), area, polygons, counts), stood_out


def _outline(value: object, height: int, width: int) -> tuple[tuple[np.ndarray, ...], np.ndarray | None]:
    """Polygons, or run lengths, or neither if there is no segmentation."""
    if value is None or value == []:
        return (), None
    if isinstance(value, list):
        polygons = []
        for flat in value:
            if not isinstance(flat, list) or len(flat) % 2:
                raise MaskError("polygon is not a list of x and y")
            points = _numbers(flat, "polygon").reshape(-1, 2)
            check_polygon(points, height, width)
            polygons.append(points)
        return tuple(polygons), None
    if not isinstance(value, dict):
        raise MaskError("segmentation is neither polygons nor RLE")
    if value.get("size") != [height, width]:
        raise MaskError(
            f"RLE size differs from the image ({str(value.get('size'))[:50]}, the image has [{height}, {width}])"
        )
    match value.get("counts"):
        case str() as text:
            counts = decode_counts(text)
        case list(numbers):
            counts = _numbers(numbers, "RLE")
            if not (np.abs(counts) < 2**53).all() or (counts != np.rint(counts)).any():
                raise MaskError("damaged RLE (a count is not an integer, or too large)")
            counts = counts.astype(np.int64)
        case _:
            raise MaskError("damaged RLE (no counts)")
    check_counts(counts, height, width)
    return (), counts


def _numbers(values: list[Any], what: str) -> np.ndarray:
    """JSON numbers as float64.

    Raises:
        ObjectError: if a value is not a number, or too large.
    """
    if not set(map(type, values)) <= {int, float}:
        raise ObjectError(f"{what} with a value that is not a number")
    try:
        return np.array(values, dtype=np.float64)
    except OverflowError:
        raise ObjectError(f"{what} with a number that is too large") from None


def _is_id(key: object) -> TypeGuard[int | str]:
    return (type(key) is int and abs(key) < MOST_ID) or (isinstance(key, str) and 0 < len(key) <= 1000)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # an unpaired surrogate, which JSON allows
        return False
    return True
