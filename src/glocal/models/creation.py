"""Models for training: created through timm for given classes and image size, with their initial weights."""

import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from glocal.bench import count_macs
from glocal.errors import GlocalError, first_line, nearest
from glocal.formatting import few
from glocal.models._config import known_keywords
from glocal.models.names import parse_model
from glocal.rng import isolated_rng

Triple = tuple[float, float, float]
Weights = Path | Literal["pretrained"] | None
"""A checkpoint to start from, timm's own weights, or random ones."""
_OWN_KEYWORDS = ("num_classes", "img_size", "in_chans")
"""Set from the data and the image size, not by the user."""


def create(
    name: str, *, num_classes: int, image_size: int, seed: int, weights: Weights = None, drop_path: float = 0.0
) -> Any:
    """A model with a new head; random weights are drawn from ``seed``, the others loaded.

    With loaded weights the head starts at zero, so that the loss starts at ln K and all models start alike: as their
    authors initialise them, heads differ in scale by a factor of 12 between families.

    Args:
        name: registered with timm (after ``import glocal``), or one with keywords (`parse_model`).
        num_classes: of the head.
        image_size: side of the input in pixels.
        seed: of the random weights.
        weights: see `Weights`.
        drop_path: rate of stochastic depth; 0 leaves the model's own default.

    Raises:
        GlocalError: if it cannot be made for this image size, or its weights do not fit.
    """
    with isolated_rng():
        torch.manual_seed(seed)
        try:
            model = _create(name, num_classes, image_size, weights, drop_path)
            count_macs(model, image_size)  # a forward pass, without storage
        except Exception as error:
            source = f" from {weights}" if weights else ""
            raise GlocalError(
                f"{name} cannot be made for {image_size} x {image_size} images{source}: {first_line(error)}"
            ) from error
        if isinstance(weights, Path):
            torch.manual_seed(seed + 1)
            _check_all_loaded(model, _create(name, num_classes, image_size, weights, drop_path), weights)
    if weights is not None:
        zero_heads(model)
    return model


def normalisation(model: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std by channel: those of the model's weights; from scratch ImageNet's for all models."""
    return tuple(model.pretrained_cfg["mean"]), tuple(model.pretrained_cfg["std"])


def starting_normalisation(name: str, weights: Weights) -> tuple[Triple, Triple]:
    """`normalisation` of a model initialised from ``weights``, without creating it."""
    if weights is None:
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    cfg: Any = timm.get_pretrained_cfg(parse_model(name)[0])
    return tuple(cfg.mean), tuple(cfg.std)


def default_image_size(name: str) -> int:
    """Default input side of a model, in pixels."""
    cfg: Any = timm.get_pretrained_cfg(parse_model(name)[0])
    return int(cfg.input_size[-1])


def check_model(name: str, *, with_keywords: bool = False) -> None:
    """Check that timm knows a name.

    Args:
        name: of a model.
        with_keywords: whether it may have keywords (`parse_model`); only their names are checked.

    Raises:
        GlocalError: with the nearest names.
    """
    name, keywords = parse_model(name) if with_keywords else (name, {})
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        hint = nearest(name, timm.list_models())
        raise GlocalError(f"unknown model {name!r}{hint}; `glocal models` lists ours, timm's work too")
    takes = known_keywords(architecture).difference(_OWN_KEYWORDS)
    for keyword in keywords:
        if keyword not in takes:
            raise GlocalError(f"{architecture} has no keyword {keyword!r}{nearest(keyword, takes)}")
    if tag and name not in (known := timm.list_models(f"{architecture}.*", pretrained=True)):
        raise GlocalError(f"{architecture} has no weights {tag!r}; it has {', '.join(known) or 'none'}")


def has_weights(name: str) -> bool:
    """Whether timm has pretrained weights of this model."""
    cfg: Any = timm.get_pretrained_cfg(parse_model(name)[0])
    return bool(cfg.has_weights)


def heads(model: Any) -> tuple[Any, ...]:
    """The last layers of a model, which have an output per class: one, or one per branch.

    By the names in its configuration: `get_classifier` of a timm model may return a container with layers before the
    last one (CAFormer, SAM), or only one of several (VOLO).
    """
    names = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    try:
        found = tuple(model.get_submodule(name) for name in ((names,) if isinstance(names, str) else names))
    except AttributeError:
        found = ()
    if found:
        return found
    classifier = model.get_classifier()
    return tuple(classifier) if isinstance(classifier, tuple | list) else (classifier,)


@torch.no_grad()
def zero_heads(model: Any) -> None:
    """Set the last layers to zero, and no layer before them: two layers of zeros in a row would never learn."""
    for head in heads(model):
        if isinstance(head, nn.Linear | nn.Conv2d):
            for parameter in head.parameters():
                parameter.zero_()


def freeze(model: Any, patterns: Sequence[str], backbone: nn.Module | None = None) -> None:
    """Freeze parameters: ``backbone`` (by default all but the heads), or names of modules or parameters.

    Raises:
        GlocalError: if a pattern matches nothing, or nothing is left to train.
    """
    names = dict(model.named_parameters())
    for pattern in patterns:
        if pattern == "backbone" and backbone is not None:
            found = list(backbone.parameters())
        elif pattern == "backbone":
            kept = {id(p) for head in heads(model) for p in head.parameters()}
            found = [p for p in names.values() if id(p) not in kept]
        else:
            found = [p for n, p in names.items() if fnmatch.fnmatch(n, pattern) or fnmatch.fnmatch(n, f"{pattern}.*")]
        if not found:
            known = [name for name, _ in model.named_modules() if name]
            raise GlocalError(
                f"freeze: expected backbone or the name of a module or parameter, got {pattern!r}"
                f"{nearest(pattern, known)}; the model's modules: {', '.join(n for n, _ in model.named_children())}"
            )
        for parameter in found:
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in names.values()):
        raise GlocalError(f"freeze: {', '.join(patterns)} leaves nothing to train")


def frozen_norms(model: nn.Module) -> list[nn.Module]:
    """Norms whose parameters are all frozen, so that their running statistics must stay fixed too."""
    return [
        module
        for module in model.modules()
        if list(module.buffers(recurse=False))
        and (own := list(module.parameters(recurse=False)))
        and not any(p.requires_grad for p in own)
    ]


def _create(name: str, num_classes: int, image_size: int, weights: Weights, drop_path: float) -> Any:
    kwargs: dict[str, Any] = {"num_classes": num_classes, "pretrained": weights is not None}
    if kwargs["pretrained"]:  # num_classes -1 differs from any head, so timm always re-initialises the head
        source = {"file": str(weights), "custom_load": False} if isinstance(weights, Path) else {}
        kwargs["pretrained_cfg_overlay"] = {"num_classes": -1, **source}
    else:
        kwargs["pretrained_cfg_overlay"] = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
    if drop_path:
        kwargs["drop_path_rate"] = drop_path
    name, keywords = parse_model(name)
    return _with_image_size(name, image_size, kwargs | keywords)


def _with_image_size(name: str, image_size: int, kwargs: dict[str, Any]) -> Any:
    try:
        return timm.create_model(name, img_size=image_size, **kwargs)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return timm.create_model(name, **kwargs)  # no img_size: the model takes any size


def model_args(name: str, image_size: int) -> dict[str, Any]:
    """Keywords that create the same model for images of this size."""
    name, keywords = parse_model(name)
    try:
        with torch.device("meta"):
            timm.create_model(name, img_size=image_size, **keywords)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return keywords
    return keywords | {"img_size": image_size}


def _check_all_loaded(model: Any, other: Any, path: Path) -> None:
    """Check that only the head is random: all else must be equal under two seeds."""
    fresh = {id(p) for head in heads(model) for p in head.parameters()}
    others = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        if id(parameter) not in fresh and not parameter.isfinite().all():
            raise GlocalError(f"{path}: expected finite weights, got NaN or infinity in {name}")
    left = [n for n, p in model.named_parameters() if id(p) not in fresh and not torch.equal(p, others[n])]
    if left:
        raise GlocalError(
            f"{path} does not hold all weights of {model.pretrained_cfg['architecture']}: {few(left, 3)} missing"
        )
