"""Data sets at the edge of what is allowed: odd sizes, no object, one, 500, crowds; maps with nothing labelled."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from glocal.data import IGNORE
from glocal.data.rle import counts_from_mask, encode_counts

CATEGORIES = ({"id": 7, "name": "bee"}, {"id": 3, "name": "ant"}, {"id": 90, "name": "cat"})
SIZES = {
    "none": (64, 48), "one": (97, 33), "many": (70, 90), "crowd": (61, 64), "only a crowd": (40, 40), "line": (200, 3),
    "column": (1, 150), "pixel": (1, 1),
}  # fmt: skip
"""Name of an image -> its width and height."""


def objects_of(name: str, rng: np.random.Generator) -> list[dict[str, Any]]:
    """What is on an image: mask, category, iscrowd."""
    width, height = SIZES[name]

    def block(x: int, y: int, w: int, h: int, category: int = 7, iscrowd: int = 0) -> dict[str, Any]:
        mask = np.zeros((height, width), bool)
        mask[y : y + h, x : x + w] = True
        return {"mask": mask, "category_id": category, "iscrowd": iscrowd}

    if name == "none":
        return []
    if name == "one":
        return [block(20, 5, 40, 25)]
    if name == "many":
        corners = rng.integers(0, (width - 8, height - 8), (500, 2))
        sides = rng.integers(2, 9, (500, 2))
        return [
            block(*corner, *side, category=(3, 7)[i % 2])
            for i, (corner, side) in enumerate(zip(corners.tolist(), sides.tolist(), strict=True))
        ]
    if name == "crowd":
        return [block(0, 0, 30, 64, iscrowd=1), block(35, 10, 20, 20), block(35, 40, 20, 20, category=3)]
    if name == "only a crowd":
        return [block(5, 5, 30, 30, category=3, iscrowd=1)]
    return [block(0, 0, width, height, category=3)]


def detection_folder(root: Path) -> Path:
    """COCO's layout; train and val show the same."""
    (root / "annotations").mkdir(parents=True)
    for part, seed in (("train", 0), ("val", 1)):
        rng = np.random.default_rng(seed)
        images, annotations = [], []
        (root / part).mkdir()
        for key, (name, (width, height)) in enumerate(SIZES.items(), 1):
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / part / f"{name}.png")
            images.append({"id": key, "file_name": f"{name}.png", "width": width, "height": height})
            for one in objects_of(name, rng):
                mask = one.pop("mask")
                rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                x, y, w, h = columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1
                annotations.append({
                    **one, "id": len(annotations) + 1, "image_id": key, "bbox": [int(v) for v in (x, y, w, h)],
                    "area": int(mask.sum()),
                    "segmentation": {"size": [height, width], "counts": encode_counts(counts_from_mask(mask))},
                })  # fmt: skip
        content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        (root / f"annotations/instances_{part}.json").write_text(json.dumps(content))
    return root


def segmentation_folder(root: Path) -> Path:
    """The plain layout, of the same sizes: classes drawn, one class alone, nothing labelled."""
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for folder in ("images", "masks"):
            (root / folder / part).mkdir(parents=True)
        for name, (width, height) in SIZES.items():
            Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(
                root / f"images/{part}/{name}.png"
            )
            label_map = rng.integers(0, 3, (height, width))
            label_map[rng.random((height, width)) < 0.2] = IGNORE
            label_map = {"none": np.full_like(label_map, IGNORE), "one": np.ones_like(label_map)}.get(name, label_map)
            Image.fromarray(label_map.astype(np.uint8)).save(root / f"masks/{part}/{name}.png")
    (root / "classes.txt").write_text("sky\nroad\ncar\n")
    return root
