"""What a detector or segmenter is made of: all that its config.json says, checked before anything is made of it."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from glocal.bench import count_macs
from glocal.errors import GlocalError, check_choice, nearest
from glocal.heads import create_detector, create_segmenter
from glocal.heads.detection import KINDS as DETECTORS
from glocal.heads.detection import PRESETS as DETECTOR_PRESETS
from glocal.heads.pyramid import PyramidAdapter
from glocal.heads.segmentation import KINDS as SEGMENTERS
from glocal.heads.segmentation import PRESETS as SEGMENTER_PRESETS
from glocal.training.creation import Weights, freeze
from glocal.training.request import Request
from glocal.training.saved import load_model
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
_FRACTIONS = ("box_score_thresh", "score_thresh", "drop_rate")  # the others are whole numbers


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


@dataclass(frozen=True)
class HeadSettings:
    """What a person chooses of a head.

    Attributes:
        head: see `Architecture`.
        preset: ``small``, ``coco`` of a detector, ``ade20k`` of a segmenter, or empty: small for images of up to 256
            pixels, else the published one.
        frozen_norm: see `Architecture.norm`.
        frozen_stages: stages of the backbone, its stem first, that do not train.
        options: see `Architecture`.
    """

    head: str
    preset: str = ""
    frozen_norm: bool = False
    frozen_stages: int = 0
    options: Mapping[str, float] = field(default_factory=dict)

    def plan(self) -> dict[str, Any]:
        """For plan.json."""
        return {**asdict(self), "options": dict(self.options)}


def read_options(task: Task, given: Sequence[str]) -> dict[str, float]:
    """``KEY=VALUE`` -> keywords of a head.

    Raises:
        GlocalError: for one that is not known or out of range.
    """
    options: dict[str, float] = {}
    for item in given:
        key, separator, text = item.partition("=")
        if key not in OPTIONS[task] or not separator:
            known = OPTIONS[task]
            raise GlocalError(
                f"option: expected KEY=VALUE with one of {', '.join(known)}, got {item!r}{nearest(key, known)}"
            )
        try:
            options[key] = float(text) if key in _FRACTIONS else int(text)
        except ValueError:
            raise GlocalError(f"option: {key}: expected a number, got {text!r}") from None
        if reason := _option_fault(task, key, options[key]):
            raise GlocalError(f"option: {reason}")
    return options


def design(
    task: Task,
    settings: HeadSettings,
    request: Request,
    *,
    classes: tuple[str, ...],
    category_ids: tuple[int, ...] = (),
) -> Architecture:
    """The architecture of a request, its mean and deviation those of the weights it starts from.

    Raises:
        GlocalError: for a head, a preset or a size that is not known.
    """
    size = request.recipe.image_size
    check_choice("detector" if task == "detection" else "segmenter", settings.head, HEADS[task])
    if size not in IMAGE_SIZES:
        raise GlocalError(
            f"recipe: image_size must be {IMAGE_SIZES[0]} to {IMAGE_SIZES[-1]} for {task}, the shorter side of images, "
            f"got {size}"
        )
    if len(classes) > MOST_CLASSES[task]:
        raise GlocalError(f"data: expected at most {MOST_CLASSES[task]} classes for {task}, got {len(classes)}")
    preset = settings.preset or ("small" if size <= 256 else PUBLISHED[task])
    check_choice("preset", preset, PRESETS[task])
    name, _, _ = request.model.partition(".")
    # of all models that start from random weights
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD
    if isinstance(request.weights, Path):
        saved = load_model(request.weights)
        mean, std = saved.mean, saved.std
    elif request.weights == "pretrained":
        cfg: Any = timm.get_pretrained_cfg(request.model)
        mean, std = cfg.mean, cfg.std
    return Architecture(
        task=task,
        head=settings.head,
        backbone=name,
        classes=classes,
        image_size=size,
        mean=_triple(mean),
        std=_triple(std),
        preset=preset,
        norm="frozen" if settings.frozen_norm else "batch",
        options=dict(settings.options),
        category_ids=category_ids,
    )


@dataclass(frozen=True)
class Transfer:
    """What a model took over from a classifier.

    Attributes:
        source: the architecture it was.
        tensors: that were taken over.
        left_out: names of the classifier's that were not, its head among them.
    """

    source: str
    tensors: int
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        shown = ", ".join(self.left_out[:5]) + (f" and {len(self.left_out) - 5} more" if len(self.left_out) > 5 else "")
        return f"Backbone: {self.tensors} tensors of a trained {self.source}; left out: {shown or 'none'}"


def create(architecture: Architecture, settings: HeadSettings, request: Request) -> tuple[Any, Transfer | None]:
    """The model of a request: random weights from its seed, the backbone's loaded where it names some, parts frozen.

    Raises:
        GlocalError: if it cannot be made, or the weights do not fit.
    """
    weights: Weights = request.weights
    _, _, tag = request.model.partition(".")
    with isolate_rng():
        torch.manual_seed(request.seed)
        try:
            model = architecture.build(
                pretrained=weights == "pretrained",
                tag=tag if weights == "pretrained" else "",
                frozen_stages=settings.frozen_stages,
                drop_path=request.recipe.drop_path,
            )
        except GlocalError:
            raise
        except Exception as error:
            raise GlocalError(f"{architecture.name} cannot be made: {first_line(error)}") from error
    backbone = backbone_of(model)
    transfer = take_over(backbone, weights, architecture.backbone) if isinstance(weights, Path) else None
    freeze(model, request.recipe.freeze, backbone)
    return model, transfer


def macs_of(model: nn.Module, architecture: Architecture) -> int:
    """Multiply-accumulates for a black square image of the architecture's size.

    Raises:
        GlocalError: if the model does not take such an image.
    """
    try:
        return count_macs(model, architecture.image_size)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise GlocalError(
            f"{architecture.name} does not take an image of {architecture.image_size} pixels: {first_line(error)}; "
            "choose another image_size, or other options of the head"
        ) from error


def backbone_of(model: nn.Module) -> nn.Module:
    """What a detector or segmenter sits on."""
    return next(module for module in model.modules() if isinstance(module, PyramidAdapter)).backbone


def take_over(backbone: nn.Module, path: Path, name: str) -> Transfer:
    """Load the weights of a classifier of glocal into the backbone of a head.

    Args:
        backbone: made with ``features_only=True``, its tensors changed in place.
        path: of the classifier: a file, or the folder of a run.
        name: of the backbone's architecture.

    Raises:
        GlocalError: if the classifier is another model, or tensors of the backbone are missing in it or of other
            shapes.
    """
    saved = load_model(path)
    if saved.name != name:
        raise GlocalError(f"weights: expected those of {name}, got {saved.name} in {path}")
    source = saved.model.state_dict()
    own = backbone.state_dict()
    # timm's feature extractors put "model." before a name, or flatten "stages.0" to "stages_0"
    by_name = {form: key for key in source for form in _forms(key)}
    found = {key: by_name.get(key) for key in own}
    misfits = [
        key
        for key, of in found.items()
        if (of is None and not key.endswith("num_batches_tracked")) or (of and source[of].shape != own[key].shape)
    ]
    if misfits:
        raise GlocalError(
            f"weights: {len(misfits)} tensors of the backbone are not in {path} or have another shape there, such as "
            f"{', '.join(misfits[:3])}; was it trained at another image size?"
        )
    taken = {key: source[of] for key, of in found.items() if of is not None}
    backbone.load_state_dict(taken, strict=False)
    used = set(found.values())
    return Transfer(saved.name, len(taken), tuple(key for key in source if key not in used))


def _forms(key: str) -> tuple[str, ...]:
    flat = key.replace(".", "_", 1)
    return tuple(f"{prefix}{form}" for prefix in ("model.", "") for form in (flat, key))


# What a configuration may say.


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
        if reason := _option_fault(task, key, value):
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


def _option_fault(task: str, key: Any, value: Any) -> str | None:
    known = OPTIONS[task]
    if key not in known:
        return f"no keyword {short(key)} is known for {task}{nearest(str(key)[:100], known)}"
    low, high = known[key]
    whole = key not in _FRACTIONS
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
    return _triple(values)


def _triple(values: Sequence[float]) -> Triple:
    red, green, blue = map(float, values)
    return red, green, blue
