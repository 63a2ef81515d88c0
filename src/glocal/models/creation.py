"""Models for training: made by timm for the classes and the size at hand, with their starting weights."""

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
from glocal.models._config import known_keywords
from glocal.models.names import parse_model
from glocal.rng import isolated_rng

Triple = tuple[float, float, float]
Weights = Path | Literal["pretrained"] | None
"""A checkpoint to start from, timm's own weights, or random ones."""
_OWN_KEYWORDS = ("num_classes", "img_size", "in_chans")
"""Follow from the data and the image size, so nobody names them."""


def create(
    name: str, *, num_classes: int, image_size: int, seed: int, weights: Weights = None, drop_path: float = 0.0
) -> Any:
    """A model with a new head, its random weights drawn from ``seed``, the others loaded.

    Args:
        name: that timm knows, after ``import glocal``, or one with keywords (`parse_model`).
        num_classes: of the head.
        image_size: side in pixels of what it will be given.
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
    return model


def normalisation(model: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std by channel: those of the model's weights; from scratch ImageNet's for all models."""
    return tuple(model.pretrained_cfg["mean"]), tuple(model.pretrained_cfg["std"])


def starting_normalisation(name: str, weights: Weights) -> tuple[Triple, Triple]:
    """What `normalisation` gives for a model that starts from ``weights``, known before it is made."""
    if weights is None:
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    cfg: Any = timm.get_pretrained_cfg(parse_model(name)[0])
    return tuple(cfg.mean), tuple(cfg.std)


def default_image_size(name: str) -> int:
    """Side in pixels that a model is made for."""
    cfg: Any = timm.get_pretrained_cfg(parse_model(name)[0])
    return int(cfg.input_size[-1])


def check_model(name: str, *, with_keywords: bool = False) -> None:
    """Refuse a name that timm does not know.

    Args:
        name: of a model.
        with_keywords: whether it may have keywords (`parse_model`); they are checked by their names alone.

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
    """Whether timm can load weights of this model by itself."""
    cfg: Any = timm.get_pretrained_cfg(parse_model(name)[0])
    return bool(cfg.has_weights)


def heads(model: Any) -> tuple[Any, ...]:
    """The classifier of a model, or its classifiers: some have a head a branch."""
    classifier = model.get_classifier()
    return tuple(classifier) if isinstance(classifier, tuple | list) else (classifier,)


def freeze(model: Any, patterns: Sequence[str], backbone: nn.Module | None = None) -> None:
    """Take parameters out of training: ``backbone`` (by default all but the heads), or names of modules or parameters.

    Raises:
        GlocalError: for a pattern that nothing is called, or when nothing is left to train.
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
                f"{nearest(pattern, known)}; the model's parts: {', '.join(n for n, _ in model.named_children())}"
            )
        for parameter in found:
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in names.values()):
        raise GlocalError(f"freeze: {', '.join(patterns)} leaves nothing to train")


def frozen_norms(model: nn.Module) -> list[nn.Module]:
    """Modules whose running statistics must not move, as all they learn is frozen."""
    return [
        module
        for module in model.modules()
        if list(module.buffers(recurse=False))
        and (own := list(module.parameters(recurse=False)))
        and not any(p.requires_grad for p in own)
    ]


def _create(name: str, num_classes: int, image_size: int, weights: Weights, drop_path: float) -> Any:
    kwargs: dict[str, Any] = {"num_classes": num_classes, "pretrained": weights is not None}
    if kwargs["pretrained"]:  # a source of -1 classes never has our head, so the head is always made anew
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
        return timm.create_model(name, **kwargs)  # a model that takes any size and is not told one


def model_args(name: str, image_size: int) -> dict[str, Any]:
    """Keywords that a model must be given to be made again for images of this size."""
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
    """What differs between two models made from two seeds is random still: only the head may be."""
    fresh = {id(p) for head in heads(model) for p in head.parameters()}
    others = dict(other.named_parameters())
    left = [n for n, p in model.named_parameters() if id(p) not in fresh and not torch.equal(p, others[n])]
    if left:
        shown = ", ".join(left[:3]) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
        raise GlocalError(
            f"{path} does not hold all weights of {model.pretrained_cfg['architecture']}: {shown} missing"
        )
