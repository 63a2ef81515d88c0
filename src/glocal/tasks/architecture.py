"""What a detector or segmenter is made of: all that its config.json says, checked before anything is made of it."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import timm
import torch
from torch import nn

from glocal.errors import GlocalError, nearest
from glocal.heads import create_detector, create_segmenter
from glocal.heads.detection import KINDS as DETECTORS
from glocal.heads.detection import PRESETS as DETECTOR_PRESETS
from glocal.heads.segmentation import KINDS as SEGMENTERS
from glocal.heads.segmentation import PRESETS as SEGMENTER_PRESETS
from glocal.training.saved_config import FileError, first_line, is_int, is_number, json_object, short

Task = Literal["detection", "segmentation"]
Triple = tuple[float, float, float]
HEADS: dict[str, tuple[str, ...]] = {"detection": DETECTORS, "segmentation": SEGMENTERS}
PRESETS = {"detection": tuple(DETECTOR_PRESETS), "segmentation": tuple(SEGMENTER_PRESETS)}
PUBLISHED = {"detection": "coco", "segmentation": "ade20k"}  # the preset of the published settings
UNNAMED = {"detection": (), "segmentation": ("",)}  # segmenters saved before they had presets are the published
NORMS = ("batch", "frozen")
IMAGE_SIZES = range(32, 2049)
MOST_CLASSES = {"detection": 100_000, "segmentation": 255}  # label maps are 8-bit, and 255 is what is ignored
LONGER = 1333 / 800  # longest side of an image, of the size of its shorter one: the published settings on COCO
# Keywords of heads that a person or a file may set, and their range.
OPTIONS: dict[str, dict[str, tuple[float, float]]] = {
    "detection": {
        "channels": (8, 1024), "hidden": (8, 4096), "anchor_size": (2, 512), "box_detections_per_img": (1, 1000),
        "detections_per_img": (1, 1000), "box_score_thresh": (0, 1), "score_thresh": (0, 1), "num_queries": (1, 1000),
        "d_model": (8, 1024), "encoder_layers": (1, 12), "decoder_layers": (1, 12),
    },
    "segmentation": {"dim": (8, 1024), "head_dim": (8, 1024), "drop_rate": (0, 0.9)},
}  # fmt: skip
FRACTIONS = ("box_score_thresh", "score_thresh", "drop_rate")  # the others are whole numbers


@dataclass(frozen=True)
class Architecture:
    """A detector or segmenter, but for its weights.

    Attributes:
        task: what it is for.
        head: a kind of `glocal.heads.create_detector` or `create_segmenter`.
        backbone: a name of glocal or timm, without a tag.
        classes: names in the order of labels.
        image_size: shorter side that images are resized to, pixels.
        mean: by channel, of pixels in [0, 1].
        std: by channel, of pixels in [0, 1].
        preset: sizes of the head; of a segmenter empty for the published ones.
        norm: ``batch``, or ``frozen``: the statistics of the backbone's BatchNorms do not move.
        options: keywords of the head, see `OPTIONS`.
        category_ids: the ids that predictions of each class are written with; empty for 1, 2, ...
    """

    task: Task
    head: str
    backbone: str
    classes: tuple[str, ...]
    image_size: int
    mean: Triple
    std: Triple
    preset: str = ""
    norm: str = "batch"
    options: Mapping[str, float] = field(default_factory=dict)
    category_ids: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.head} on {self.backbone}"

    @property
    def has_masks(self) -> bool:
        """Whether it predicts a mask for each object."""
        return "mask" in self.head

    @property
    def ids(self) -> tuple[int, ...]:
        """The id of each class in files of predictions."""
        return self.category_ids or tuple(range(1, len(self.classes) + 1))

    def to_json(self) -> str:
        """The text of config.json."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def build(self, *, pretrained: bool = False, tag: str = "", frozen_stages: int = 0, drop_path: float = 0.0) -> Any:
        """The module, its weights random, but for the backbone's where they are asked for.

        Args:
            pretrained: take timm's for the backbone.
            tag: which of them.
            frozen_stages: of the backbone, that do not train.
            drop_path: rate of stochastic depth in the backbone.

        Raises:
            GlocalError: if it cannot be made.
        """
        given: dict[str, Any] = {
            "pretrained": pretrained,
            "preset": self.preset,
            "norm": self.norm,
            "frozen_stages": frozen_stages,
            "backbone_kwargs": {"drop_path_rate": drop_path} if drop_path else None,
            **self.options,
        }
        name = f"{self.backbone}.{tag}" if tag else self.backbone
        if self.task == "segmentation":
            return create_segmenter(
                self.head, name, len(self.classes), **{**given, "preset": self.preset or PUBLISHED[self.task]}
            )
        sides: dict[str, Any] = {"min_size": self.image_size, "max_size": self.image_size}
        if self.preset == "coco":
            sides["max_size"] = round(self.image_size * LONGER)
            if self.head == "rt_detr":  # knows no padding
                sides |= {"max_size": self.image_size, "fixed_size": (self.image_size, self.image_size)}
        given |= {"image_mean": list(self.mean), "image_std": list(self.std)}
        return create_detector(self.head, name, len(self.classes), **sides, **given)


def describe(text: str, num_tensors: int) -> Architecture:
    """Check the text of a configuration.

    Raises:
        FileError: for what is no architecture of ours.
    """
    config = json_object(text, "its configuration")
    task = config.get("task")
    if task is None and "architecture" in config:
        raise FileError(
            "expected a detector or segmenter, got a classifier", "`glocal eval` and `glocal predict` take it"
        )
    if task not in tuple(HEADS):
        raise FileError(f"task: expected one of {', '.join(HEADS)}, got {short(task)}")
    known = tuple(Architecture.__dataclass_fields__)
    if others := [key for key in config if key not in known]:
        raise FileError(f"no setting {short(others[0])} is known{nearest(others[0][:100], known)}")
    if missing := [key for key in known[:7] if key not in config]:
        raise FileError(f"its configuration does not say {missing[0]}")
    for key, choices in (("head", HEADS[task]), ("norm", NORMS)):
        if config.get(key, NORMS[0]) not in choices:
            raise FileError(f"{key}: expected one of {', '.join(choices)}, got {short(config.get(key))}")
    name, preset = config["backbone"], config.get("preset", "")
    if not isinstance(name, str) or not name.isidentifier() or not timm.is_model(name):
        raise FileError(f"backbone: expected a name of glocal or timm, got {short(name)}", "`glocal models` lists ours")
    if preset not in (*UNNAMED[task], *PRESETS[task]):
        raise FileError(f"preset: expected one of {', '.join(PRESETS[task])} for {task}, got {short(preset)}")
    if not is_int(config["image_size"]) or config["image_size"] not in IMAGE_SIZES:
        raise FileError(
            f"image_size: expected {IMAGE_SIZES[0]} to {IMAGE_SIZES[-1]}, got {short(config['image_size'])}"
        )
    classes = _classes(config["classes"], MOST_CLASSES[task])
    options = config.get("options", {})
    if not isinstance(options, dict):
        raise FileError(f"options: expected an object, got {short(options)}")
    for key, value in options.items():
        if reason := option_fault(task, key, value):
            raise FileError(f"options: {reason}")
        if key.endswith("_layers") and value > num_tensors:
            raise FileError(
                f"options: {key}: expected at most {num_tensors}, the tensors there are, got {short(value)}"
            )
    ids = config.get("category_ids", [])
    fits = isinstance(ids, list) and len(ids) in (0, len(classes)) and all(is_int(i) and abs(i) < 2**53 for i in ids)
    if not fits or len(set(ids)) < len(ids):
        raise FileError(f"category_ids: expected {len(classes)} different whole numbers, or none, got {short(ids)}")
    return Architecture(
        task=task,
        head=config["head"],
        backbone=name,
        classes=classes,
        image_size=config["image_size"],
        mean=_statistic(config, "mean", 0.0),
        std=_statistic(config, "std", 1e-6),
        preset=preset,
        norm=config.get("norm", NORMS[0]),
        options=options,
        category_ids=tuple(ids),
    )


def build(architecture: Architecture) -> nn.Module:
    """The model with random weights; the random numbers of others are as before.

    Raises:
        FileError: for values that no one would give a model.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            return architecture.build()
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if isinstance(error.__cause__, ModuleNotFoundError):
            raise  # it says what to install
        raise FileError(f"no {architecture.name} can be made as it says ({first_line(error)})") from error


def relabelled(architecture: Architecture, classes: Sequence[str]) -> list[int]:
    """The label that each class of a data set has in a model, by name.

    Raises:
        GlocalError: for a class that the model does not know.
    """
    of_model = {name: label for label, name in enumerate(architecture.classes)}
    if unknown := [name for name in classes if name not in of_model]:
        raise GlocalError(
            f"data: expected classes of the model, got {len(unknown)} others: {', '.join(map(repr, unknown[:3]))}"
            f"{nearest(unknown[0], of_model)}; the model knows {', '.join(architecture.classes[:10])}"
            + (" ..." if len(architecture.classes) > 10 else "")
        )
    return [of_model[name] for name in classes]


def option_fault(task: str, key: Any, value: Any) -> str | None:
    """Why a keyword of a head cannot be used, or None."""
    known = OPTIONS[task]
    if key not in known:
        return f"no keyword {short(key)} is known for {task}{nearest(str(key)[:100], known)}"
    low, high = known[key]
    whole = key not in FRACTIONS
    if not (is_int(value) if whole else is_number(value)) or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        return f"{key}: expected {kind} from {low:g} to {high:g}, got {short(value)}"
    return None


def _classes(names: Any, most: int) -> tuple[str, ...]:
    if not isinstance(names, list) or not 1 <= len(names) <= most or not all(isinstance(n, str) and n for n in names):
        got = f"{len(names)} entries" if isinstance(names, list) else short(names)
        raise FileError(f"classes: expected a list of 1 to {most} names, got {got}")
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise FileError(f"classes: expected each once, got {short(twice)} twice")
    return tuple(names)


def _statistic(config: Mapping[str, Any], key: str, low: float) -> Triple:
    values = config[key]
    fits = isinstance(values, list) and len(values) == 3
    if not fits or not all(is_number(value) and low <= value <= 1e3 for value in values):
        raise FileError(f"{key}: expected 3 numbers from {low:g}, got {short(values)}")
    return triple(values)


def triple(values: Sequence[float]) -> Triple:
    """One number for each channel."""
    red, green, blue = map(float, values)
    return red, green, blue
