"""Small runs of both tasks on the generated set."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from glocal.data import DetectionSample, ImageError
from glocal.data.pasted import items_on_photos, label_maps_of_items
from glocal.models.io import ModelConfig
from glocal.signals import StopRequest
from glocal.tasks import DetectionTask, SegmentationTask, Task
from glocal.training import HeadConfig, load_recipe
from glocal.training.run import COLUMNS, train_run

SIZE = 64
QUICK = (
    "epochs=2", "image_size=64", "batch_size=4", "log_every_steps=1", "checkpoint_every_steps=2",
    "evaluate_every_epochs=1",
)  # fmt: skip


class Asked(NamedTuple):
    """Data and head, for a task whose settings are still open."""

    cls: type[Task]
    source: Any
    head: HeadConfig

    def task(self, *settings, model="resnet_micro", **kwargs):
        recipe = {DetectionTask: "detect_micro", SegmentationTask: "segment_micro"}[self.cls]
        config = load_recipe(recipe, settings=[*QUICK, *settings])
        config = config.replace(**{"name": model, "head": self.head, "num_workers": 0, **kwargs})
        return self.cls.for_data(self.source, config)


def detection(train=8, val=4, head="faster_rcnn", **kwargs):
    return Asked(DetectionTask, items_on_photos(SIZE, train=train, val=val), HeadConfig(head, **kwargs))


def segmentation(train=8, val=4, head="semantic_fpn", **kwargs):
    kwargs = {"options": {"dim": 32, "head_dim": 32}, **kwargs} if head == "semantic_fpn" else kwargs
    return Asked(SegmentationTask, label_maps_of_items(SIZE, train=train, val=val), HeadConfig(head, **kwargs))


MAKE = {"detect": detection, "segment": segmentation}


def run(task, out, *settings, asked=None, stop=None, progress=lambda _: None, say=lambda _: None, **kwargs):
    made = (asked or MAKE[task]()).task(*settings, **kwargs)
    return train_run(made, out, stop=stop, progress=progress, say=say)


class StopAt(StopRequest):
    """Asked to stop at a step, as by a signal."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def watch(self, progress):
        if progress.step == self.step:
            self.requested = "SIGTERM"


def rows(out):
    """metrics.csv without what a clock has measured."""
    header, *lines = (line.split(",") for line in (out / "metrics.csv").read_text().splitlines())
    assert tuple(header[: len(COLUMNS)]) == COLUMNS
    timed = {COLUMNS.index("seconds"), COLUMNS.index("images_per_s")}
    return [[cell for i, cell in enumerate(line) if i not in timed] for line in lines]


def untimed(results):
    kept = {k: v for k, v in results.items() if k not in ("seconds", "images_per_s", "curve", "environment")}
    return kept | {"curve": [{k: v for k, v in point.items() if k != "seconds"} for point in results["curve"]]}


class Fixed:
    """A store of one sample, or of images that went bad."""

    def __init__(self, sample, bad=()):
        self.only, self.bad = sample, bad

    def sample(self, path, row):
        if row in self.bad:
            raise ImageError(path, "empty file")
        named = {"image_id": row} if isinstance(self.only, DetectionSample) else {}
        return dataclasses.replace(self.only, path=path, **named)

    label_map = sample


def objects(seed=0, size=(9, 12), number=3, crowd=()):
    """A sample whose boxes are those of its masks."""
    rng = np.random.default_rng(seed)
    height, width = size
    masks = np.zeros((number, height, width), bool)
    for mask in masks:
        top, left = int(rng.integers(0, height - 3)), int(rng.integers(0, width - 3))
        mask[top : top + int(rng.integers(1, 4)), left : left + int(rng.integers(1, 4))] = True
    boxes = np.array([box_of(mask) for mask in masks], np.float32)
    return DetectionSample(
        image=rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        boxes=boxes,
        labels=np.arange(number, dtype=np.int64),
        masks=masks,
        crowd=np.isin(np.arange(number), crowd),
        area=masks.sum(axis=(1, 2), dtype=np.float32),
        image_id=0,
        path="made",
    )


def box_of(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def head_task(cls, num_classes, **options):
    """A task of a model whose images are not normalised, for what it does with outputs alone."""
    head = {DetectionTask: "mask_rcnn", SegmentationTask: "semantic_fpn"}[cls]
    classes = tuple(map(str, range(num_classes)))
    return cls(ModelConfig(cls.name, "resnet_micro", classes, SIZE, (0.0,) * 3, (1.0,) * 3, head=head), **options)
