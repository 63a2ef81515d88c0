"""Models of a comparison: made by timm for the classes and the size at hand, with their starting weights."""

from pathlib import Path
from typing import Any

import timm
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from glocal.bench import count_macs
from glocal.comparison.settings import Settings
from glocal.errors import GlocalError


def create(name: str, settings: Settings, num_classes: int, seed: int) -> Any:
    """A model with a new head, its random weights drawn from ``seed``, the others loaded as the mode asks.

    Raises:
        GlocalError: if it cannot be made for this image size, or its weights do not fit.
    """
    weights = settings.weights.get(name)
    with isolate_rng():
        torch.manual_seed(seed)
        try:
            model = _create(name, settings, num_classes)
            count_macs(model, settings.image_size)  # a forward pass, without storage
        except Exception as error:
            source = f" from {weights}" if weights else ""
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            size = settings.image_size
            raise GlocalError(f"{name} cannot be made for {size} x {size} images{source}: {reason}") from error
        if weights is not None:
            torch.manual_seed(seed + 1)
            _check_all_loaded(model, _create(name, settings, num_classes), weights)
    return model


def normalisation(model: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by channel: those of the model's weights; from scratch ImageNet's for all models."""
    return tuple(model.pretrained_cfg["mean"]), tuple(model.pretrained_cfg["std"])


def _create(name: str, settings: Settings, num_classes: int) -> Any:
    weights = settings.weights.get(name)
    kwargs: dict[str, Any] = {"num_classes": num_classes, "pretrained": settings.mode != "scratch"}
    if kwargs["pretrained"]:  # a source of -1 classes never has our head, so the head is always made anew
        source = {"file": str(weights), "custom_load": False} if weights else {}
        kwargs["pretrained_cfg_overlay"] = {"num_classes": -1, **source}
    else:
        kwargs["pretrained_cfg_overlay"] = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
    if settings.recipe.drop_path:
        kwargs["drop_path_rate"] = settings.recipe.drop_path
    return _with_image_size(name, settings.image_size, kwargs)


def _with_image_size(name: str, image_size: int, kwargs: dict[str, Any]) -> Any:
    try:
        return timm.create_model(name, img_size=image_size, **kwargs)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return timm.create_model(name, **kwargs)  # a model that takes any size and is not told one


def heads(model: Any) -> tuple[Any, ...]:
    """The classifier of a model, or its classifiers: some have a head a branch."""
    classifier = model.get_classifier()
    return tuple(classifier) if isinstance(classifier, tuple | list) else (classifier,)


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
