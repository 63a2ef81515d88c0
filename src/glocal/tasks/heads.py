"""Detectors and segmenters of a run: settings that apply, the model and its weights, what it costs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from glocal.bench import count_macs
from glocal.errors import GlocalError, check_choice, first_line, nearest
from glocal.heads.pyramid import PyramidAdapter
from glocal.heads.settings import (
    FRACTIONS,
    HEADS,
    IMAGE_SIZES,
    MAX_CLASSES,
    OPTIONS,
    PRESETS,
    PUBLISHED,
    option_fault,
)
from glocal.models.creation import freeze
from glocal.models.io import ModelConfig, TaskName, build_head, load_model, triple
from glocal.rng import isolated_rng
from glocal.schema import TaskDescription
from glocal.tasks.base import Task
from glocal.training.config import DEFAULT_RECIPES, TrainConfig, load_recipe

MEANINGLESS = (
    "label_smoothing", "class_balance", "auto_augment", "crop_scale", "color_jitter", "random_erasing", "crop_pct",
    "mixup", "cutmix", "layer_decay",
)  # fmt: skip


def read_options(task: TaskName, given: Sequence[str]) -> dict[str, float]:
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
            options[key] = float(text) if key in FRACTIONS else int(text)
        except ValueError:
            raise GlocalError(f"option: {key}: expected a number, got {text!r}") from None
        if reason := option_fault(task, key, options[key]):
            raise GlocalError(f"option: {reason}")
    return options


def model_config(
    task: TaskName, config: TrainConfig, *, classes: tuple[str, ...], category_ids: tuple[int, ...] = ()
) -> ModelConfig:
    """What a run is to train; mean and std are those of the weights it starts from.

    Raises:
        GlocalError: for a head, a preset, a size or a setting that the task does not allow.
    """
    check_config(task, config)
    head, start, size = config.head, config.model, config.data.image_size
    if head is None:
        raise GlocalError(f"head: expected one of {', '.join(HEADS[task])}, got none")
    check_choice("detector" if task == "detection" else "segmenter", head.head, HEADS[task])
    if size not in IMAGE_SIZES:
        raise GlocalError(
            f"recipe: image_size must be {IMAGE_SIZES[0]} to {IMAGE_SIZES[-1]} for {task}, the shorter side of images, "
            f"got {size}"
        )
    if len(classes) > MAX_CLASSES[task]:
        raise GlocalError(f"data: expected at most {MAX_CLASSES[task]} classes for {task}, got {len(classes)}")
    preset = head.preset or ("small" if size <= 256 else PUBLISHED[task])
    check_choice("preset", preset, PRESETS[task])
    # of all models that start from random weights
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD
    if isinstance(start.weights, Path):
        saved = load_model(start.weights, "classification")
        mean, std = saved.mean, saved.std
    elif start.weights == "pretrained":
        cfg: Any = timm.get_pretrained_cfg(start.name)
        mean, std = cfg.mean, cfg.std
    return ModelConfig(
        task=task,
        head=head.head,
        architecture=start.name.partition(".")[0],
        classes=classes,
        image_size=size,
        mean=triple(mean),
        std=triple(std),
        preset=preset,
        norm="frozen" if head.frozen_norm else "batch",
        options=dict(head.options),
        category_ids=category_ids,
    )


def check_config(task: TaskName, config: TrainConfig) -> None:
    """Refuse settings that mean nothing for a task.

    Raises:
        GlocalError: naming the setting or option.
    """
    recipe, defaults, plain = (of.to_recipe() for of in (config, load_recipe(DEFAULT_RECIPES[task]), TrainConfig()))
    for name in MEANINGLESS:
        if recipe[name] not in (defaults[name], plain[name]):
            raise GlocalError(
                f"recipe: {name} has no meaning for {task}, got {recipe[name]!r}; leave it at {defaults[name]!r}"
            )
    if config.data.augment == "randaugment":
        raise GlocalError(f"recipe: augment must be one of none, light for {task}, got 'randaugment'")
    if config.hardware.is_sharded:
        raise GlocalError(f"strategy: {task} runs with ddp alone, got fsdp: parts of its heads are called by name")


@dataclass(frozen=True)
class BackboneWeights:
    """What a backbone was loaded with from a classifier.

    Attributes:
        source: the architecture of the classifier.
        tensors: how many were loaded.
        left_out: names of the classifier's tensors that were not, its head among them.
    """

    source: str
    tensors: int
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        shown = ", ".join(self.left_out[:5]) + (f" and {len(self.left_out) - 5} more" if len(self.left_out) > 5 else "")
        return f"Backbone: {self.tensors} tensors of a trained {self.source}; left out: {shown or 'none'}"


class HeadTask(Task):
    """What detection and segmentation share: a head on a backbone, whose weights may be a classifier's."""

    loaded: BackboneWeights | None = None

    def plan(self) -> dict[str, Any]:
        """Data and head."""
        assert self.config.head is not None
        return {"task": self.name, **super().plan(), "head": asdict(self.config.head)}

    def about(self) -> TaskDescription:
        """And which of the backbone's weights were loaded."""
        about = super().about()
        if self.loaded is not None:
            about["transfer"] = asdict(self.loaded)
        return about

    def notes(self) -> list[str]:
        """Which of the backbone's weights were loaded."""
        return [] if self.loaded is None else [str(self.loaded)]

    def create_model(self) -> nn.Module:
        """Random weights from the seed, the backbone's loaded where the run names some, parts frozen.

        Raises:
            GlocalError: if it cannot be made, or the weights do not fit.
        """
        of, start, head = self.model_config, self.config.model, self.config.head
        pretrained = start.weights == "pretrained"
        with isolated_rng():
            torch.manual_seed(self.config.seed)
            try:
                model: nn.Module = build_head(
                    of,
                    pretrained=pretrained,
                    tag=start.name.partition(".")[2] if pretrained else "",
                    frozen_stages=0 if head is None else head.frozen_stages,
                    drop_path=start.drop_path,
                )
            except GlocalError:
                raise
            except Exception as error:
                raise GlocalError(f"{of.name} cannot be made: {first_line(error)}") from error
        backbone = backbone_of(model)
        if isinstance(start.weights, Path):
            self.loaded = load_backbone_weights(backbone, start.weights, of.architecture)
        freeze(model, start.freeze, backbone)
        return model

    def count_macs(self, model: nn.Module) -> int:
        """For a black square image of the recipe's size, on which a second stage sees its own random proposals.

        Raises:
            GlocalError: if the model does not take such an image.
        """
        of = self.model_config
        try:
            return count_macs(model, of.image_size)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise GlocalError(
                f"{of.name} does not take an image of {of.image_size} pixels: {first_line(error)}; "
                "choose another image_size, or other options of the head"
            ) from error


def backbone_of(model: nn.Module) -> nn.Module:
    """What a detector or segmenter sits on."""
    return next(module for module in model.modules() if isinstance(module, PyramidAdapter)).backbone


def load_backbone_weights(backbone: nn.Module, path: Path, name: str) -> BackboneWeights:
    """Load the weights of a classifier of glocal into the backbone of a head.

    Args:
        backbone: made with ``features_only=True``, its tensors changed in place.
        path: of the classifier: a file, or the folder of a run.
        name: of the backbone's architecture.

    Raises:
        GlocalError: if the classifier is another model, or tensors of the backbone are missing in it or of other
            shapes.
    """
    saved = load_model(path, "classification")
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
    return BackboneWeights(saved.name, len(taken), tuple(key for key in source if key not in used))


def _forms(key: str) -> tuple[str, ...]:
    flat = key.replace(".", "_", 1)
    return tuple(f"{prefix}{form}" for prefix in ("model.", "") for form in (flat, key))
