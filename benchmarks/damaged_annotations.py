"""Damaged annotation files, label maps and images: each a clear error or a listed skip, and never a traceback.

    python benchmarks/damaged_annotations.py [--each 12] [--commands 2]

Every case is a small data set with one file damaged in one of the ways below, at random from a seed. It is loaded in
this process with ``on_error="skip"`` and with ``"stop"``, and every sample is read and checked; some cases also run
through ``glocal check`` and ``glocal detect train`` or ``glocal segment train``. Writes
docs/results/damaged-annotations.json and .md.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.reliability import forked
from tests.data.annotating import coco_folder, harmed_text, harmed_tree, label_png, voc_folder
from tests.data.making import claiming, encoded, picture
from tests.data.test_images import mutate

from glocal.bench import describe_environment
from glocal.data import DetectionSample, load_detection, load_segmentation
from glocal.errors import GlocalError
from glocal.files import atomic_write_text

RESULT = Path(__file__).parents[1] / "docs/results/damaged-annotations"
SEED = 0
SLOW = 5.0
"""Seconds that a case may take at most."""

Rng = np.random.Generator


class Way(NamedTuple):
    """A way to damage a data set.

    Attributes:
        form: of the data set: coco, voc or maps.
        harm: changes the files under a folder.
    """

    form: str
    harm: Callable[[Path, Rng], None]


WAYS: dict[str, Way] = {}
"""By what is done, in words."""


def way(name: str, form: str) -> Callable[[Callable[[Path, Rng], None]], Callable[[Path, Rng], None]]:
    """Enter a function into `WAYS`."""

    def enter(harm: Callable[[Path, Rng], None]) -> Callable[[Path, Rng], None]:
        WAYS[name] = Way(form, harm)
        return harm

    return enter


def make(root: Path) -> None:
    """The three data sets, undamaged; their images are few, small, and of different sizes."""
    coco_folder(root / "coco", [3, 0, 2, 4], [2, 1], kinds=("polygon", "runs", "text"))
    voc_folder(root / "voc", {"train": 5, "val": 3})
    rng = np.random.default_rng(SEED)
    for part, count in (("train", 4), ("val", 2)):
        (root / "maps/images" / part).mkdir(parents=True)
        for number in range(count):
            width, height = (int(side) for side in rng.integers(33, 90, 2))
            picture(number, (width, height)).save(root / f"maps/images/{part}/{number}.png")
            values = rng.choice(np.array([0, 1, 2, 255], np.uint8), (height, width))
            label_png(root / f"maps/masks/{part}/{number}.png", values, palette=bool(number % 2))
    (root / "maps/classes.txt").write_text("sky\nroad\ncar\n")


# COCO's JSON

COCO = "annotations/instances_train2017.json"
HUGE = (1e308, -1e308, 2**53, 2**63, -(2**63), 2**64, 10**30, 10**400, 10**4000, 1e-300, 10**5000)
NOT_FINITE = (float("nan"), float("inf"), float("-inf"))


def drawn(rng: Rng, values: tuple[Any, ...] | list[Any]) -> Any:
    """One of some values, as it is."""
    return values[int(rng.integers(len(values)))]


def as_json(content: Any) -> str:
    """JSON with integers of any length."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(content)
    finally:
        sys.set_int_max_str_digits(limit)


@contextmanager
def opened(root: Path) -> Iterator[dict[str, Any]]:
    """The content of the annotation file, written back when it has been changed."""
    file = root / COCO
    content = json.loads(file.read_text())
    yield content
    file.write_text(as_json(content))


def text_of(root: Path, change: Callable[[str], bytes]) -> None:
    """The annotation file, changed as text."""
    file = root / COCO
    file.write_bytes(change(file.read_text()))


def number_in(content: dict[str, Any], rng: Rng, value: Any) -> None:
    """Put a value in the place of one of the numbers of the file."""
    entry, image = drawn(rng, content["annotations"]), drawn(rng, content["images"])
    holder, key = drawn(
        rng,
        [
            (entry, "id"), (entry, "image_id"), (entry, "category_id"), (entry, "area"), (entry, "iscrowd"),
            (image, "id"), (image, "width"), (image, "height"), (drawn(rng, content["categories"]), "id"),
            (entry["bbox"], 0), (entry["bbox"], 2), (entry["bbox"], 3),
        ],
    )  # fmt: skip
    outline = entry["segmentation"]
    if rng.random() < 0.4:
        if isinstance(outline, list):
            holder, key = outline[0], int(rng.integers(len(outline[0])))
        elif isinstance(outline["counts"], list):
            holder, key = outline["counts"], int(rng.integers(len(outline["counts"])))
        else:
            holder, key = outline["size"], int(rng.integers(2))
    holder[key] = value


@way("COCO: truncated", "coco")
def _cut(root: Path, rng: Rng) -> None:
    text_of(root, lambda text: text.encode()[: int(rng.integers(len(text)))])


@way("COCO: bytes changed", "coco")
def _bytes(root: Path, rng: Rng) -> None:
    text_of(root, lambda text: mutate(text.encode(), rng))


@way("COCO: fragments removed or duplicated, numbers replaced", "coco")
def _pieces(root: Path, rng: Rng) -> None:
    text_of(root, lambda text: harmed_text(text, rng))


@way("COCO: values of other types", "coco")
def _types(root: Path, rng: Rng) -> None:
    text_of(root, lambda text: harmed_tree(text, rng))


@way("COCO: huge numbers", "coco")
def _huge(root: Path, rng: Rng) -> None:
    with opened(root) as content:
        for _ in range(2):
            number_in(content, rng, drawn(rng, HUGE))


@way("COCO: NaN and infinity", "coco")
def _not_finite(root: Path, rng: Rng) -> None:
    with opened(root) as content:
        number_in(content, rng, drawn(rng, NOT_FINITE))


@way("COCO: missing keys", "coco")
def _keys(root: Path, rng: Rng) -> None:
    with opened(root) as content:
        holder = drawn(rng, [content, *content["images"], *content["categories"], *content["annotations"] * 2])
        del holder[drawn(rng, list(holder))]


@way("COCO: duplicate ids and entries", "coco")
def _twice(root: Path, rng: Rng) -> None:
    with opened(root) as content:
        entries = content[drawn(rng, ["images", "annotations", "categories"])]
        first, second = rng.choice(len(entries), 2, replace=False)
        if rng.random() < 0.5:
            entries[second]["id"] = entries[first]["id"]
        else:
            entries.append(entries[first])


@way("COCO: invalid run lengths", "coco")
def _runs(root: Path, rng: Rng) -> None:
    with opened(root) as content:
        entry = drawn(rng, content["annotations"])
        image = next(one for one in content["images"] if one["id"] == entry["image_id"])
        size = [image["height"], image["width"]]
        number = int(rng.integers(0, 40))
        counts = drawn(
            rng,
            [
                "".join(chr(code) for code in rng.integers(48, 112, number)),
                "".join(chr(code) for code in rng.integers(1, 0xD7FF, number)),
                "o" * 10**6,
                rng.integers(-5, 200, number).tolist(),
                [0] * 10**5,
                [size[0] * size[1] + 1, -1],
                [2**62, 2**62, 2**62, 2**62],
                [0.5] * number,
                {"counts": []},
                None,
            ],
        )
        sizes = [size, size, size[::-1], [0, 0], [-1, 7], [2**31, 2**31], [1e9, 1e9], size * 2, "1x1", None]
        entry["segmentation"] = {"size": drawn(rng, sizes), "counts": counts}


@way("COCO: invalid polygons", "coco")
def _polygons(root: Path, rng: Rng) -> None:
    with opened(root) as content:
        entry = drawn(rng, content["annotations"])
        points = rng.uniform(0, 30, 14).tolist()
        entry["segmentation"] = drawn(
            rng,
            [
                [points[:13]], [points[:4]], [points[:2]], [[]], [[], points], points, [[points]], "points",
                [[[x, y] for x, y in zip(points[::2], points[1::2], strict=True)]], [points * 20000], [[1e9] * 8],
                [[-3.0, 5.0] * 4], [["3", "4"] * 4], [[True] * 8], [[0.0, 0.0, 1e-9, 0.0, 0.0, 1e-9]], [points] * 3000,
            ],
        )  # fmt: skip


@way("COCO: deeply nested lists", "coco")
def _deep(root: Path, rng: Rng) -> None:
    depth = drawn(rng, [30, 300, 900, 985, 990, 1100, 10_000, 300_000])
    nested = drawn(rng, ["[", '{"size":'])
    close = "]" if nested == "[" else "}"
    mark = "D" * 12
    with opened(root) as content:
        number_in(content, rng, mark)
    text_of(root, lambda text: text.replace(f'"{mark}"', nested * depth + "0" + close * depth).encode())


@way("COCO: invalid file names", "coco")
def _names(root: Path, rng: Rng) -> None:
    with opened(root) as content:
        names = [
            "/etc/passwd", "../secret.png", "a/../../secret.png", "", ".", "..", "x\0y.png", "\ud800.png", "\x1b[3m",
            "n" * 300 + ".png", "d/" * 3000 + "x.png", "~root.png", "001.png/", "./002.png", "//001.png", "\n", 7, None,
            ["001.png"], "annotations", "CON", "%00", "é" * 200,
        ]  # fmt: skip
        drawn(rng, content["images"])["file_name"] = drawn(rng, names)


@way("COCO: other encodings and files", "coco")
def _encodings(root: Path, rng: Rng) -> None:
    changes: list[Callable[[str], bytes]] = [
        lambda text: text.encode("utf-16"), lambda text: text.encode("utf-32"), lambda text: text.encode("utf-8-sig"),
        lambda text: text.replace("bee", "bée").encode("latin-1"), lambda text: b"", lambda text: b"\0" * 100,
        lambda text: b"\x1f\x8b\x08" + text.encode(), lambda text: text.replace('"', "'").encode(),
        lambda text: b"[]", lambda text: b"7", lambda text: b'"images"', lambda text: b"null", lambda text: b"{}",
        lambda text: text.encode() + text.encode(), lambda text: b"\xff" + text.encode(),
        lambda text: text.replace('"categories": [', '"categories": [], "other": [').encode(),
        lambda text: text.replace('"annotations": [', '"annotations": {}, "other": [').encode(),
        lambda text: text.replace('"images": [', '"images": [{}, 3, null], "other": [').encode(),
    ]  # fmt: skip
    text_of(root, drawn(rng, changes))


@way("COCO: the file is something else", "coco")
def _no_file(root: Path, rng: Rng) -> None:
    file = root / COCO
    file.unlink()
    kind = int(rng.integers(5))
    if kind == 0:
        file.mkdir()
    elif kind == 1:
        os.mkfifo(file)
    elif kind == 2:
        file.symlink_to(file)
    elif kind == 3:
        file.symlink_to("/dev/zero")
    else:
        file.symlink_to(root / "annotations/instances_val2017.json")


# Pascal VOC's XML

ENTITIES = (
    '<!DOCTYPE a [<!ENTITY l0 "lol">' + "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 12))
    + "]>{}&l11;",
    '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>{}',
    '<!DOCTYPE a [<!ENTITY x SYSTEM "http://127.0.0.1:9/">]>{}',
    '<!DOCTYPE a [<!ENTITY % p SYSTEM "file:///dev/zero">%p;]>{}',
    '<!DOCTYPE a [<!ENTITY x "' + "A" * 10**6 + '">]>{}',
    '<!DOCTYPE a SYSTEM "a.dtd">{}',
    "<?xml-stylesheet href='file:///etc/passwd'?>{}",
)  # fmt: skip


def xml_of(root: Path, change: Callable[[str], bytes]) -> None:
    """One of the files of annotations, changed as text."""
    file = root / "Annotations/train_0004.xml"
    file.write_bytes(change(file.read_text()))


@way("VOC: bytes changed, truncated", "voc")
def _xml_bytes(root: Path, rng: Rng) -> None:
    xml_of(root, lambda text: mutate(text.encode(), rng))


@way("VOC: fragments removed or duplicated, numbers replaced", "voc")
def _xml_pieces(root: Path, rng: Rng) -> None:
    xml_of(root, lambda text: harmed_text(text, rng))


@way("VOC: entities and document types", "voc")
def _xml_entities(root: Path, rng: Rng) -> None:
    form = drawn(rng, ENTITIES)
    use = drawn(rng, ["", "&x;", "&l9;"])
    xml_of(root, lambda text: form.replace("{}", text.replace("<name>", f"<name>{use}")).encode())


@way("VOC: nested deep, long, many", "voc")
def _xml_deep(root: Path, rng: Rng) -> None:
    number = drawn(rng, [25, 31, 1000, 100_000])
    one = "<object><name>dog</name></object>"
    inner = drawn(rng, ["<a>" * number + "</a>" * number, "<a/>" * number, "x" * (40 * number), one * number])
    xml_of(root, lambda text: text.replace("</annotation>", inner + "</annotation>").encode())


@way("VOC: other encodings and files", "voc")
def _xml_encodings(root: Path, rng: Rng) -> None:
    changes: list[Callable[[str], bytes]] = [
        lambda text: text.encode("utf-16"), lambda text: b'<?xml version="1.0" encoding="nope"?>' + text.encode(),
        lambda text: b'<?xml version="1.0" encoding="utf-7"?>' + text.encode(), lambda text: b"",
        lambda text: b"\0" * 9,
        lambda text: b'<?xml version="1.0" encoding="ascii"?>' + text.replace("dog", "d\xf6g").encode("latin-1"),
        lambda text: b"<a/>", lambda text: b"<a/><b/>", lambda text: text.replace("dog", "&#0;").encode(),
        lambda text: text.replace("dog", "&#xD800;").encode(), lambda text: text.replace("object", "\xe9").encode(),
        lambda text: b'<?xml version="1.0" encoding="utf-16"?>' + text.encode(), lambda text: b"{}",
    ]  # fmt: skip
    xml_of(root, drawn(rng, changes))


@way("VOC: lists of images", "voc")
def _lists(root: Path, rng: Rng) -> None:
    file = root / "ImageSets/Main" / drawn(rng, ["train.txt", "val.txt"])
    text = file.read_text()
    lines = [
        "", text + text, text + "../../etc/passwd\n", text + "/etc/passwd\n", text + "\n\n  \n", text + "x\0y\n",
        text.replace("\n", " 1\n"), text.replace("\n", " -1\n"), "missing\n" * 3, text + "n" * 400 + "\n",
        "\ufeff" + text, text.replace("\n", "\r\n"), text + "\x1b[2J\n",
    ]  # fmt: skip
    file.write_bytes(mutate(text.encode(), rng) if rng.random() < 0.3 else drawn(rng, lines).encode())


# Label maps

MAP = "masks/train/2.png"


@way("label map: bytes changed, truncated", "maps")
def _map_bytes(root: Path, rng: Rng) -> None:
    file = root / MAP
    file.write_bytes(mutate(file.read_bytes(), rng))


@way("label map: another mode", "maps")
def _map_mode(root: Path, rng: Rng) -> None:
    file = root / MAP
    values = np.asarray(Image.open(file))
    mode = drawn(rng, ["RGB", "RGBA", "LA", "1", "I;16", "I", "CMYK", "F"])
    if mode == "I;16":
        image = Image.fromarray(values.astype(np.uint16) * drawn(rng, [1, 257]))
    else:
        image = Image.fromarray(values).convert(mode)
    kind = "TIFF" if mode in ("CMYK", "F", "I") else drawn(rng, ["PNG", "PNG", "TIFF" if mode != "LA" else "PNG"])
    file.write_bytes(encoded(image, kind))


@way("label map: another size", "maps")
def _map_size(root: Path, rng: Rng) -> None:
    file = root / MAP
    if rng.random() < 0.4:
        side = drawn(rng, [2**31 - 1, 60_000, 13_000])
        file.write_bytes(claiming("PNG", side, drawn(rng, [side, 1, 9])))
        return
    height, width = np.asarray(Image.open(file)).shape
    size = drawn(rng, [(height, width), (width + 1, height), (1, 1), (width, height - 1), (2 * width, 2 * height)])
    label_png(file, np.zeros(size[::-1], np.uint8))


@way("label map: values without a class", "maps")
def _map_values(root: Path, rng: Rng) -> None:
    file = root / MAP
    values = np.asarray(Image.open(file)).copy()
    values[int(rng.integers(values.shape[0]))] = int(rng.integers(3, 255))
    label_png(file, values)


@way("label map: list of classes", "maps")
def _classes(root: Path, rng: Rng) -> None:
    names = [
        b"", b"\n\n\n", b"sky\n", b"sky\nsky\ncar\n", b"\xff\xfe\x00", b"sky\n\nroad\ncar\n", b"a\n" * 10**6,
        "\n".join(map(str, range(10**6))).encode(), b"y" * 999 + b"\nroad\ncar\n", b"y" * 2000 + b"\nroad\ncar\n",
        "\n".join(map(str, range(300))).encode(), b"s\0y\nroad\ncar\n", b"\x1b[2Jsky\nroad\ncar\n", b"x" * 10**7,
        "\n".join(map(str, range(254))).encode(),
    ]  # fmt: skip
    file = root / "classes.txt"
    file.write_bytes(drawn(rng, names))
    if rng.random() < 0.15:
        file.unlink()
        file.mkdir()


# Images

PLACES = {"coco": "train2017/001.png", "voc": "JPEGImages/train_0004.jpg", "maps": "images/train/2.png"}


def _an_image(form: str) -> None:
    @way(f"image of {form}: bytes changed, truncated", form)
    def changed(root: Path, rng: Rng) -> None:
        file = root / PLACES[form]
        file.write_bytes(mutate(file.read_bytes(), rng))

    @way(f"image of {form}: something else", form)
    def other(root: Path, rng: Rng) -> None:
        file = root / PLACES[form]
        content = file.read_bytes()
        file.unlink()
        kind = int(rng.integers(10))
        if kind == 0:
            file.mkdir()
        elif kind == 1:
            os.mkfifo(file)
        elif kind == 2:
            file.symlink_to(file)
        elif kind == 3:
            file.symlink_to("/dev/zero")
        elif kind == 4:
            file.symlink_to(root.parent / "elsewhere.png")
        elif kind > 4:  # 5 leaves nothing
            name = drawn(rng, ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"])
            claim = claiming(name, *drawn(rng, [(16_000, 16_000), (1, 16_000), (9, 9)]))
            svg = b"<svg xmlns='http://www.w3.org/2000/svg'/>"
            file.write_bytes(drawn(rng, [b"", b"text", svg, claim, claim, content * 2, b"\0" * 5000, content[:-1]]))


for _form in PLACES:
    _an_image(_form)


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        way: a key of `WAYS`.
        kind: clear error, listed skip, loaded, or traceback.
        text: of the error, or the first reasons.
        seconds: that it took.
    """

    way: str
    kind: str
    text: str
    seconds: float


def load_of(form: str) -> Callable[..., Any]:
    """What reads a form of data."""
    return load_segmentation if form == "maps" else load_detection


def look(form: str, root: Path) -> tuple[str, str]:
    """Load a case and read every sample of it: what became of it, and the text.

    Raises:
        Exception: whatever is no clear error, or an assertion, if what was loaded is not sound.
    """
    load = load_of(form)
    try:
        source = load(str(root), on_error="skip", progress=False)
    except GlocalError as error:
        assert_clear(str(error))
        return "clear error", str(error)
    for part in (source.train, source.val):
        for sample in part:
            check_sample(sample, len(source.classes))
    reasons = [f"{bad.path}: {bad.reason}" for bad in source.skipped]
    assert all(bad.reason for bad in source.skipped)
    stopped = ""
    try:
        load(str(root), on_error="stop", progress=False)
    except GlocalError as error:
        stopped = str(error)
        assert_clear(stopped)
    assert bool(reasons) == bool(stopped), f"skipped: {reasons[:1]}; stopped: {stopped}"
    return ("listed skip", "; ".join(reasons[:3])) if reasons else ("loaded", "")


def assert_clear(text: str) -> None:
    """An error is short, can be printed, and says what was expected."""
    assert "expected" in text
    assert len(text) < 4000, f"{len(text)} characters"
    assert text.replace("\n", "").isprintable(), text
    text.encode()


def check_sample(sample: Any, num_classes: int) -> None:
    """A sample is what docs/data-detection.md promises."""
    height, width = sample.image.shape[:2]
    assert sample.image.dtype == np.uint8
    if not isinstance(sample, DetectionSample):
        assert sample.label_map.shape == (height, width)
        values = np.unique(sample.label_map)
        assert ((values < num_classes) & (values >= 0) | (values == 255)).all()
        return
    number = len(sample.boxes)
    assert np.isfinite(sample.boxes).all()
    assert (sample.boxes[:, :2] < sample.boxes[:, 2:]).all()
    assert ((sample.boxes >= 0) & (sample.boxes <= [width, height, width, height])).all()
    assert ((sample.labels >= 0) & (sample.labels < num_classes)).all()
    assert np.isfinite(sample.area).all()
    assert len(sample.labels) == len(sample.crowd) == len(sample.area) == number
    assert sample.masks is None or sample.masks.shape == (number, height, width)


def cases(place: Path, each: int, seed: int) -> Iterator[tuple[str, str, Path]]:
    """(way, form, folder) of damaged data sets, one at a time: the folder is gone when the next is asked for."""
    whole = place / "whole"
    make(whole)
    for number, (name, (form, harm)) in enumerate(WAYS.items()):
        for turn in range(each):
            root = place / "case" / form
            shutil.copytree(whole / form, root)
            shutil.copy(whole / "coco/train2017/001.png", root.parent / "elsewhere.png")
            harm(root, np.random.default_rng((seed, number, turn)))
            yield name, form, root
            shutil.rmtree(root.parent)


def outcome(name: str, form: str, root: Path, looking: Callable[[str, Path], tuple[str, str]] = look) -> Outcome:
    """Of one case."""
    start = time.perf_counter()
    try:
        kind, text = looking(form, root)
    except Exception:
        kind, text = "traceback", traceback.format_exc()
    return Outcome(name, kind, text, time.perf_counter() - start)


def commands(name: str, form: str, root: Path, log: Path) -> Iterator[tuple[str, int, str]]:
    """(command, exit code, what it said) of the commands that read a case, each in a process of its own."""
    task = "segment" if form == "maps" else "detect"
    small = [
        "--model", "resnet_micro", "--device", "cpu", "--workers", "0", "-s", "epochs=1", "-s", "image_size=32",
        "-s", "batch_size=2", "--out", str(log.with_suffix(".run")),
    ]  # fmt: skip
    for words in (
        ["check", str(root), "--task", task, "--out", str(log.with_suffix(".jsonl"))],
        [task, "train", str(root), *small],
        [task, "train", str(root), *small, "--on-error", "skip"],
    ):
        log.unlink(missing_ok=True)
        shutil.rmtree(log.with_suffix(".run"), ignore_errors=True)
        code = forked.run(lambda words=words: forked.command(*words), log)
        called = " ".join([words[0], *(["train"] if words[0] == task else []), *words[-2:] * ("skip" in words)])
        yield called, code, log.read_text(errors="replace")


def page(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    about = (__doc__ or "").replace("``", "`").split("\n\n")[2].splitlines()
    lines = ["# Damaged annotations, label maps and images", "", *about, ""]
    rows, total = found["ways"], found["total"]
    lines += [
        f"**{total['cases']} cases: {total['clear error']} clear errors, {total['listed skip']} listed skips, "
        f"{total['loaded']} loaded (harmless changes), {total['traceback']} tracebacks; the longest took "
        f"{total['longest']:.2f} s.**",
        "",
        "A clear error states what was expected, fits on a screen and is printable. With `skip` the remaining data is",
        "valid: boxes inside their image, known labels, finite areas, masks of the image's size. `stop` raises an",
        "error if and only if `skip` lists something.",
        "",
        "| damage | cases | clear error | listed skip | loaded | tracebacks | longest, s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in rows.items():
        counts = " | ".join(str(row[kind]) for kind in ("cases", "clear error", "listed skip", "loaded", "traceback"))
        lines.append(f"| {name} | {counts} | {row['longest']:.2f} |")
    lines += ["", "Some cases of each kind through the commands, one process each:", ""]
    lines += ["| command | runs | exit codes | tracebacks |", "| --- | ---: | --- | ---: |"]
    for name, row in found["commands"].items():
        codes = ", ".join(f"{code}: {count}" for code, count in row["codes"].items())
        lines.append(f"| `glocal {name}` | {row['runs']} | {codes} | {row['tracebacks']} |")
    machine = found["environment"]
    lines += [
        "",
        "`check` exits with 0 if everything is usable, 1 if something is listed, 2 if nothing is usable; `train`",
        "with 0 or 2.",
        "",
        f"`{found['command']}` took {found['seconds']:.0f} s on {found['date']} ({machine.get('cpu', '')}, "
        f"{machine.get('cores', '?')} cores, python {machine.get('python')}).",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Measure, write, and say whether every case was as it should be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--each", type=int, default=12, help="cases of each way")
    parser.add_argument("--commands", type=int, default=2, help="of which so many go through the commands")
    asked = parser.parse_args()
    start = time.perf_counter()
    warnings.simplefilter("error")
    results: list[Outcome] = []
    called: dict[str, list[tuple[int, bool]]] = {}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        os.environ["GLOCAL_CACHE"] = str(place / "cache")
        turns: Counter[str] = Counter()
        for of, form, root in cases(place, asked.each, SEED):
            results.append(outcome(of, form, root))
            if results[-1].kind == "traceback" or results[-1].seconds > SLOW:
                print(f"{of}, number {turns[of]}: {results[-1].seconds:.1f} s: {results[-1].text}", flush=True)
            if turns[of] < asked.commands:
                for command, code, said in commands(of, form, root, place / "log"):
                    bad = "Traceback" in said or code not in (0, 1, 2)
                    called.setdefault(command, []).append((code, bad))
                    if bad:
                        print(f"{of}, number {turns[of]}: glocal {command}: {code}\n{said}", flush=True)
            turns[of] += 1
    kinds = ("clear error", "listed skip", "loaded", "traceback")

    def row(of: list[Outcome]) -> dict[str, Any]:
        counts = Counter(one.kind for one in of)
        longest = round(max(one.seconds for one in of), 3)
        return {"cases": len(of), **{kind: counts[kind] for kind in kinds}, "longest": longest}

    found = {
        "seed": SEED,
        "total": row(results),
        "ways": {name: row([one for one in results if one.way == name]) for name in WAYS},
        "commands": {
            name: {
                "runs": len(runs),
                "codes": dict(sorted(Counter(str(code) for code, _ in runs).items())),
                "tracebacks": sum(bad for _, bad in runs),
            }
            for name, runs in called.items()
        },
        "command": f"python benchmarks/damaged_annotations.py --each {asked.each} --commands {asked.commands}",
        "seconds": round(time.perf_counter() - start, 1),
        "date": date.today().isoformat(),
        "environment": describe_environment(),
    }
    atomic_write_text(RESULT.with_suffix(".json"), json.dumps(found, indent=1) + "\n")
    atomic_write_text(RESULT.with_suffix(".md"), page(found))
    print(found["total"])
    fine = found["total"]["traceback"] == 0 and found["total"]["longest"] <= SLOW
    return 0 if fine and not any(bad for runs in called.values() for _, bad in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
