"""Models to export: from a run, or by name."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn

from glocal.checkpoints.read import read_checkpoint
from glocal.checkpoints.unwrap import unwrap
from glocal.errors import CheckpointError, GlocalError, first_line
from glocal.files import printable
from glocal.models import convert_checkpoint, create_model
from glocal.models.creation import check_model, default_image_size
from glocal.models.io import load_model

Weights = Path | Literal["pretrained"] | None
"""A checkpoint, timm's own weights, or random ones."""
RANDOM = "random weights"


@dataclass(frozen=True, eq=False)
class Source:
    """A classifier and its preprocessing.

    Attributes:
        model: in eval mode.
        name: of the architecture.
        weights: their description.
        classes: one name per logit, or None if unknown.
        image_size: side in pixels, or height and width.
        crop_pct: see `glocal.data.transforms.resize_crop`.
        interpolation: see `glocal.data.transforms.resize_crop`.
        mean: by channel, of pixels in [0, 1].
        std: by channel, of pixels in [0, 1].
        model_args: keywords it was created with.
    """

    model: nn.Module
    name: str
    weights: str
    classes: tuple[str, ...] | None
    image_size: int | tuple[int, int]
    crop_pct: float
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    model_args: Mapping[str, Any]


def from_run(path: Path) -> Source:
    """The model of a run.

    Args:
        path: its folder, or its .safetensors file.

    Raises:
        CheckpointError: as `glocal.models.io.load_model`.
    """
    saved = load_model(path, "classification")
    return Source(
        model=saved.model,
        name=saved.name,
        weights=f"weights of {printable(path)}",
        classes=saved.classes,
        image_size=saved.image_size,
        crop_pct=saved.crop_pct,
        interpolation="bicubic",
        mean=saved.mean,
        std=saved.std,
        model_args=saved.config.keywords,
    )


def named(name: str, weights: Weights = None, image_size: int | tuple[int, int] | None = None) -> Source:
    """A model of glocal or timm by name.

    Args:
        name: of the model, with or without timm's weight tag.
        weights: see `Weights`.
        image_size: side in pixels, or height and width; by default the model's.

    Raises:
        GlocalError: if there is no such model, or it cannot be created at this size or with these weights.
    """
    check_model(name)
    size = image_size or default_image_size(name)
    try:
        if isinstance(weights, Path):
            model, arguments = _with_checkpoint(name, weights, size)
        else:
            model, arguments = _made(name, size, pretrained=weights is not None)
    except GlocalError:
        raise
    except Exception as error:  # timm's errors, and those of a download
        source = f" with {weights} weights" if weights else ""
        raise GlocalError(f"{name} cannot be created{source}: {first_line(error)}") from error
    cfg = model.pretrained_cfg
    if weights is not None and cfg.get("crop_mode", "center") != "center":
        raise GlocalError(f"{name}: expected weights with centre crop, got {cfg['crop_mode']}")
    return Source(
        model=model.eval(),
        name=cfg["architecture"],
        weights=_in_words(weights),
        classes=_label_names(model) if weights == "pretrained" else None,
        image_size=size,
        crop_pct=float(cfg.get("crop_pct", 1.0)),
        interpolation="bicubic" if weights is None else cfg.get("interpolation", "bicubic"),
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        model_args=arguments,
    )


def _in_words(weights: Weights) -> str:
    if weights is None:
        return RANDOM
    return "pretrained weights" if weights == "pretrained" else f"weights of {printable(weights)}"


def _made(name: str, size: int | tuple[int, int], **kwargs: Any) -> tuple[Any, dict[str, Any]]:
    """A model, and the keywords that timm does not store."""
    try:
        return create_model(name, img_size=size, **kwargs), {"img_size": size}
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return create_model(name, **kwargs), {}  # no img_size: the model takes any size


def _with_checkpoint(name: str, file: Path, size: int | tuple[int, int]) -> tuple[Any, dict[str, Any]]:
    checkpoint = read_checkpoint(file)
    with torch.device("meta"):
        blank: Any = create_model(name)
    if not hasattr(blank, "adapt_checkpoint"):  # timm's models: timm reads and adapts the file
        num_classes = _num_classes(unwrap(checkpoint), blank, file)
        overlay = {"file": os.fspath(file), "num_classes": num_classes, "custom_load": False}
        return _made(name, size, num_classes=num_classes, pretrained=True, pretrained_cfg_overlay=overlay)
    with torch.device("meta"):
        num_classes = _num_classes(blank.adapt_checkpoint(dict(checkpoint), blank), blank, file)
    model, arguments = _made(name, size, num_classes=num_classes)
    model.load_state_dict(convert_checkpoint(name, checkpoint, num_classes=num_classes, **arguments))
    return model, arguments


def _num_classes(state_dict: Mapping[str, Any], model: Any, file: Path) -> int:
    names = model.pretrained_cfg["classifier"]
    head = f"{names if isinstance(names, str) else names[0]}.weight"
    if head not in state_dict:
        raise CheckpointError(
            f"{printable(file)}: expected a classifier's weights, got no {head}; a backbone has no classes"
        )
    return len(state_dict[head])


def _label_names(model: Any) -> tuple[str, ...] | None:
    """Class names of timm's weights: its own, or ImageNet's synset ids (n01440764, ...)."""
    if names := model.pretrained_cfg.get("label_names"):
        return tuple(names)
    subset = infer_imagenet_subset(model)
    return tuple(ImageNetInfo(subset).label_names()) if subset else None
