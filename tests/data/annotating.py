"""Annotated pictures for the tests, in COCO's and Pascal VOC's forms, and harm done to the files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from glocal.data.rle import counts_from_mask, encode_counts
from tests.data.making import picture

CATEGORIES = [{"id": 7, "name": "bee"}, {"id": 3, "name": "ant"}, {"id": 90, "name": "cat"}]


def outlined(rng: np.random.Generator, width: int, height: int) -> tuple[list[float], np.ndarray]:
    """A box x y w h, and a polygon of some points inside it."""
    w, h = rng.uniform(2, width / 2), rng.uniform(2, height / 2)
    x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 12)))
    points = np.stack([x + w / 2 + w / 2 * np.cos(angles), y + h / 2 + h / 2 * np.sin(angles)], axis=1)
    return [round(float(v), 2) for v in (x, y, w, h)], points.round(2)


def annotation(rng: np.random.Generator, key: int, image: dict[str, Any], kind: str) -> dict[str, Any]:
    """An annotation with polygons, plain or compressed run lengths, or none ("box")."""
    width, height = image["width"], image["height"]
    bbox, points = outlined(rng, width, height)
    category = CATEGORIES[int(rng.integers(3))]["id"]
    entry = {"id": key, "image_id": image["id"], "category_id": category, "bbox": bbox, "iscrowd": 0}
    if kind == "polygon":
        entry["segmentation"] = [points.ravel().tolist(), (points + 3).ravel().tolist()][: int(rng.integers(1, 3))]
    elif kind in ("runs", "text"):
        mask = np.zeros((height, width), dtype=bool)
        x, y, w, h = (round(v) for v in bbox)
        mask[y : y + h, x : x + w] = rng.random(mask[y : y + h, x : x + w].shape) < 0.7
        counts = counts_from_mask(mask)
        entry["segmentation"] = {
            "size": [height, width],
            "counts": counts.tolist() if kind == "runs" else encode_counts(counts),
        }
    entry["area"] = round(bbox[2] * bbox[3] * 0.7, 2)
    return entry


def coco_part(
    folder: Path, objects: list[int], *, seed: int = 0, first: int = 1, kinds: tuple[str, ...] = ("polygon",)
) -> dict[str, Any]:
    """Pictures of odd sizes with so many objects each, written to a folder; returns what the JSON file is to hold."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": CATEGORIES}
    for number, count in enumerate(objects, first):
        width, height = (int(side) for side in rng.integers(33, 90, 2))
        image = {"id": 10 * number, "file_name": f"{number:03d}.png", "width": width, "height": height}
        picture(seed + number, (width, height)).save(folder / image["file_name"])
        content["images"].append(image)
        for _ in range(count):
            key = 1000 * first + len(content["annotations"])
            kind = kinds[len(content["annotations"]) % len(kinds)]
            content["annotations"].append(annotation(rng, key, image, kind))
    return content


def coco_folder(root: Path, train: list[int], val: list[int], **options: Any) -> Path:
    """``root/annotations/instances_{train,val}2017.json`` with ``root/{train,val}2017/*.png``."""
    (root / "annotations").mkdir(parents=True)
    for part, objects, first in (("train", train, 1), ("val", val, 501)):
        content = coco_part(root / f"{part}2017", objects, seed=first, first=first, **options)
        (root / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(content))
    return root


OBJECT = """  <object>
    <name>{name}</name><pose>Left</pose><difficult>{difficult}</difficult>
    <bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox>
    <part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>
  </object>
"""


def voc_xml(size: tuple[int, int], objects: list[tuple[str, tuple[float, ...], int]]) -> str:
    inner = "".join(OBJECT.format(name=name, box=box, difficult=difficult) for name, box, difficult in objects)
    width, height = size
    return (
        f"<annotation>\n  <filename>any.jpg</filename>\n"
        f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>\n{inner}</annotation>\n"
    )


def voc_folder(root: Path, parts: dict[str, int], *, task: str = "Main") -> Path:
    """Pascal VOC's layout with so many images a part, each with one object more than the last, from none."""
    rng = np.random.default_rng(0)
    for folder in ("Annotations", "JPEGImages", f"ImageSets/{task}"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for part, count in parts.items():
        stems = [f"{part}_{i:04d}" for i in range(count)]
        (root / "ImageSets" / task / f"{part}.txt").write_text("".join(f"{stem}\n" for stem in stems))
        for number, stem in enumerate(stems):
            width, height = (int(side) for side in rng.integers(40, 80, 2))
            picture(number + len(part), (width, height)).save(root / "JPEGImages" / f"{stem}.jpg")
            objects = []
            for _ in range(number):
                x, y = (int(v) for v in rng.integers(1, 20, 2))
                box = x, y, x + int(rng.integers(1, 20)), y + int(rng.integers(1, 20))
                objects.append((("dog", "aeroplane", "sofa")[len(objects) % 3], box, int(rng.random() < 0.3)))
            (root / "Annotations" / f"{stem}.xml").write_text(voc_xml((width, height), objects))
    return root


def label_png(path: Path, values: np.ndarray, *, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if palette:
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    image.save(path)


def harmed_text(text: str, rng: np.random.Generator) -> bytes:
    """Damage to a text file: bytes flipped, cut, doubled, or a number or word put in the place of another."""
    content = text.encode()
    kind = int(rng.integers(6))
    at, end = sorted(int(v) for v in rng.integers(0, len(content), 2))
    if kind == 0:
        return content[:at]
    if kind == 1:
        changed = bytearray(content)
        for spot in rng.integers(0, len(content), 5):
            changed[spot] = int(rng.integers(256))
        return bytes(changed)
    if kind == 2:
        return content[:end] + content[at:]
    if kind == 3:
        return content[:at] + content[min(end, at + 40) :]
    words = [
        b"-1",
        b"1e400",
        b"NaN",
        b"null",
        b"[]",
        b"{}",
        b'"x"',
        b"99999999999999999999",
        b"0",
        b"true",
        b"-Infinity",
    ]
    numbers = [i for i in range(1, len(content)) if content[i : i + 1].isdigit() and not content[i - 1 : i].isalnum()]
    for spot in sorted((int(v) for v in rng.choice(numbers, 3)), reverse=True):
        last = spot
        while last < len(content) and (content[last : last + 1].isdigit() or content[last : last + 1] == b"."):
            last += 1
        content = content[:spot] + words[int(rng.integers(len(words)))] + content[last:]
    return content


NASTY = (
    None,
    True,
    -1,
    0,
    10**400,
    1e300,
    float("nan"),
    float("-inf"),
    "",
    "x\0y",
    "\ud800",
    [],
    {},
    [[]],
    [None] * 8,
    0.5,
)


def harmed_tree(text: str, rng: np.random.Generator) -> bytes:
    """JSON that is whole, with three of its values replaced, left out or doubled."""
    content = json.loads(text)
    for _ in range(3):
        node, depth = content, int(rng.integers(1, 7))
        for _ in range(depth):
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = keys[int(rng.integers(len(keys)))]
            if isinstance(node[key], dict | list) and rng.random() < 0.8:
                node = node[key]
                continue
            if (kind := rng.random()) < 0.2:
                del node[key]
            elif kind < 0.3 and isinstance(node, list):
                node.append(node[key])
            else:
                node[key] = NASTY[int(rng.integers(len(NASTY)))]
            break
    return json.dumps(content).encode()
