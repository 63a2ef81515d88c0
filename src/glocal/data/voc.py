"""Pascal VOC: an XML file of objects for each image, and lists of the images of each part.

The PASCAL Visual Object Classes Challenge: Everingham et al. 2010, https://doi.org/10.1007/s11263-009-0275-4.
Annotations are parsed by expat, which opens no files; documents that declare entities are rejected.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

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
from glocal.data.listing import LONGEST_CLASS, Inside, check_no_link, read_annotations, read_lines, walk
from glocal.data.objects import SkippedObject
from glocal.data.sets import Skipped
from glocal.errors import GlocalError
from glocal.files import printable

MOST_XML = 4 * 2**20  # bytes; an annotation has a few thousand
MOST_DEPTH = 30


@dataclass
class Element:
    """An XML element: name, children, text."""

    name: str
    inner: list["Element"] = field(default_factory=list)
    text: str = ""

    def find(self, *names: str) -> "Element | None":
        """The first element along a path of names."""
        element: Element | None = self
        for name in names:
            element = next((one for one in element.inner if one.name == name), None) if element else None
        return element

    def value(self, *names: str) -> str:
        """The stripped text of the element along a path; "" if there is none."""
        element = self.find(*names)
        return element.text.strip() if element else ""


@dataclass(frozen=True)
class VocPart:
    """Images of a part and their annotations; no image is opened yet.

    Attributes:
        root: of the layout.
        annotations: image -> its annotation file, relative to the root.
        images: those with readable annotations.
        objects: image id -> its objects.
        skipped: unusable images and annotations.
    """

    root: Path
    annotations: dict[str, str]
    images: tuple[ListedImage, ...]
    objects: dict[str, list[Element]]
    skipped: tuple[Skipped, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names of the objects, sorted."""
        names = {one.value("name") for of_image in self.objects.values() for one in of_image}
        return tuple(sorted(name for name in names if 0 < len(name) <= LONGEST_CLASS))


def parse_xml(content: bytes) -> Element:
    """The elements of an XML document, without attributes.

    Raises:
        ObjectError: if it is damaged, declares a document type (which could contain entities), or is nested too deep.
    """
    root = Element("")
    path = [root]

    def start(name: str, attributes: dict[str, str]) -> None:
        if len(path) > MOST_DEPTH:
            raise ObjectError(f"XML nested more than {MOST_DEPTH} deep")
        path[-1].inner.append(Element(name))
        path.append(path[-1].inner[-1])

    def end(name: str) -> None:
        path.pop()

    def text(characters: str) -> None:
        path[-1].text += characters

    def refuse(*declaration: object) -> None:
        raise ObjectError("XML with a document type, which could contain entities")

    parser = expat.ParserCreate()
    parser.buffer_text, parser.buffer_size = True, 2**20
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(content, True)
    except ObjectError:
        raise
    except (expat.ExpatError, ValueError, LookupError) as error:  # an unknown encoding is a LookupError
        raise ObjectError(f"damaged XML ({printable(str(error))[:200]})") from None
    return root


def is_voc(root: Path) -> bool:
    """Whether a folder has VOC's layout."""
    return (root / "Annotations").is_dir() and (root / "JPEGImages").is_dir()


def list_parts(
    root: Path, task: str, folder: str, extension: str, *, follow_links: bool = False
) -> dict[str, list[str]]:
    """Part ("train" and "val", or "" for images to be split) -> names of its images, without extension.

    From ``ImageSets/TASK/train.txt`` and ``val.txt``; without val, of ``trainval.txt`` or ``train.txt``; without them,
    all annotation files.

    Args:
        root: of the layout.
        task: Main or Segmentation.
        folder: of the annotation files: Annotations, or SegmentationClass.
        extension: of these files.
        follow_links: whether links are followed.

    Raises:
        GlocalError: if a list is unreadable.
    """
    lists = {name: root / "ImageSets" / task / f"{name}.txt" for name in ("train", "val", "trainval")}
    there = {
        name: check_no_link(root, file, follow_links=follow_links) for name, file in lists.items() if file.exists()
    }
    if "train" in there and "val" in there:
        return {name: [line.split()[0] for line in read_lines(there[name]) if line] for name in ("train", "val")}
    for name in ("trainval", "train"):
        if name in there:
            return {"": [line.split()[0] for line in read_lines(there[name]) if line]}
    files, _ = walk(root / folder, follow_links=follow_links)
    return {"": [os.path.splitext(name)[0] for name in files if os.path.splitext(name)[1] == extension]}


def find_images(root: Path, *, follow_links: bool = False) -> dict[str, str]:
    """Name without extension -> file of each image under JPEGImages, relative to the root."""
    check_no_link(root, root / "JPEGImages", follow_links=follow_links)
    files, _ = walk(root / "JPEGImages", follow_links=follow_links)
    return {os.path.splitext(name)[0]: os.path.join("JPEGImages", name) for name in reversed(files)}


def read_voc(root: Path, stems: list[str], files: dict[str, str], *, follow_links: bool = False) -> VocPart:
    """Read the annotations of a part; faults are listed, not raised.

    Args:
        root: of the layout.
        stems: names of the images, without extension.
        files: from `find_images`.
        follow_links: whether links are followed.
    """
    inside = Inside(root / "Annotations", follow_links=follow_links)
    images: dict[str, ListedImage] = {}
    annotations: dict[str, str] = {}
    objects: dict[str, list[Element]] = {}
    skipped = []
    for stem in stems:
        annotation = os.path.join("Annotations", f"{stem}.xml")
        path = annotation
        try:
            if problem := inside.problem(f"{stem}.xml"):
                raise ObjectError(problem)
            if stem in images:
                raise ObjectError("listed twice")
            if stem not in files:
                path = os.path.join("JPEGImages", stem)
                raise ObjectError("no such file (in JPEGImages, with any extension)")
            root_element = parse_xml(_read(root / annotation))
            top = root_element.inner[0]
            images[stem] = ListedImage(files[stem], stem, _size(top))
            annotations[files[stem]] = annotation
            objects[stem] = [one for one in top.inner if one.name == "object"]
        except ObjectError as error:
            skipped.append(Skipped(path, str(error)))
    return VocPart(root, annotations, tuple(images.values()), objects, tuple(skipped))


def _read(file: Path) -> bytes:
    try:
        return read_annotations(file, most_bytes=MOST_XML)
    except GlocalError:
        raise ObjectError("no such file" if not os.path.lexists(file) else "unreadable, or too large") from None


def _size(top: Element) -> tuple[int, int] | None:
    """Width and height; None if the file does not give them."""
    width, height = top.value("size", "width"), top.value("size", "height")
    if not width and not height:
        return None
    if not (width.isdecimal() and height.isdecimal() and len(width + height) < 20):
        raise ObjectError("invalid width or height")
    return int(width), int(height)


def check_voc(part: VocPart, classes: tuple[str, ...], reading: Reading) -> CheckedPart:
    """Decode every image of a part and check every object; faults are listed, not raised."""
    shown = {image.name: image.name for image in part.images}
    good, bad = measure_images(part.root, shown, part.images, reading)
    labels = {name: label for label, name in enumerate(classes)}
    skipped: list[Skipped] = [*part.skipped, *bad]
    clipped = 0
    objects = []
    for key, (image, measured) in good.items():
        of_image = []
        for place, element in enumerate(part.objects[str(key)]):
            try:
                one, stood_out = _object(element, measured.size, labels)
                of_image.append(one)
                clipped += stood_out
            except ObjectError as error:
                skipped.append(SkippedObject(part.annotations[image.name], str(error), f"#{place}"))
        objects.append(of_image)
    return collect(part.root, shown, list(good.values()), objects, reading, skipped=skipped, clipped=clipped)


def _object(element: Element, size: tuple[int, int], labels: dict[str, int]) -> tuple[Object, bool]:
    name = element.value("name")
    if name not in labels:
        raise ObjectError(f"unknown class ({name[:100]})" if name else "no class")
    x1, y1, x2, y2 = _corners(element)
    # VOC counts pixels from 1, and both corners are pixels of the object
    box, stood_out = clip_box((x1 - 1, y1 - 1, x2, y2), *size)
    return Object(box, labels[name], element.value("difficult") == "1", float("nan")), stood_out


def _corners(element: Element) -> Iterator[float]:
    for name in ("xmin", "ymin", "xmax", "ymax"):
        text = element.value("bndbox", name)
        try:
            yield float(text)
        except ValueError:
            raise ObjectError(f"no box (expected bndbox with a number {name}, got {text[:50]!r})") from None
