"""Backbones for heads: by name or as a module, with weights, BatchNorm mode and frozen stages."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import convert_sync_batchnorm
from timm.utils.model import freeze_batch_norm_2d
from torch import nn

from glocal.errors import GlocalError, check_choice, nearest

NORMS = ("batch", "frozen", "sync")


def create_backbone(
    backbone: str | nn.Module,
    *,
    pretrained: bool = False,
    weights: str | Path | None = None,
    norm: str = "batch",
    frozen_stages: int = 0,
    coarsest: int | None = None,
    **kwargs: Any,
) -> nn.Module:
    """A feature extractor (image -> list of maps), prepared for a detector or segmenter.

    Args:
        backbone: a name of glocal or timm, or a module made with ``features_only=True``.
        pretrained: load timm's weights for the name.
        weights: a checkpoint file in the backbone's parameter names; for a name only.
        norm: BatchNorm of the backbone: "batch"; "frozen" statistics and scales (for small batches;
            needs pretrained weights); "sync" over all processes.
        frozen_stages: the stem and this many stages of `feature_info` are frozen. Their BatchNorm statistics are still
            updated, unless norm is "frozen".
        coarsest: stride of the coarsest level in use; a backbone by name is built without later stages.
        kwargs: of `timm.create_model`, for a name only.

    Raises:
        GlocalError: if the name, the norm or the number of stages is unknown, a module gives no maps, or the weights
            are missing.
    """
    check_choice("norm", norm, NORMS)
    features: Any = backbone
    if isinstance(backbone, str):
        if weights is not None:
            if not Path(weights).is_file():
                raise GlocalError(f"weights: no file {weights}")
            pretrained, kwargs = True, {**kwargs, "pretrained_cfg_overlay": {"file": str(weights)}}
        features = _by_name(backbone, coarsest, pretrained=pretrained, **kwargs)
    elif pretrained or weights is not None or kwargs:
        given = ", ".join([*["pretrained"] * pretrained, *["weights"] * (weights is not None), *kwargs])
        raise GlocalError(f"{given}: only for a backbone by name; pass it when you create the module")
    if not callable(getattr(getattr(features, "feature_info", None), "reduction", None)):
        raise GlocalError(
            f"backbone: expected a name or a module that gives maps, got {type(features).__name__}; "
            "create it with timm.create_model(..., features_only=True)"
        )
    if norm == "frozen":
        features = freeze_batch_norm_2d(features)
    elif norm == "sync":
        features = convert_sync_batchnorm(features)
    _freeze(features, frozen_stages)
    return features


def _by_name(name: str, coarsest: int | None, *, pretrained: bool, **kwargs: Any) -> nn.Module:
    if not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")) and not timm.is_model(name):
        raise GlocalError(
            f"backbone: expected a name of glocal or timm, got {name!r}{nearest(name, timm.list_models())}"
        )
    # timm's Vision and Swin Transformers need these keywords to take other image sizes; other models reject them
    optional = {"dynamic_img_size": True, "strict_img_size": False}
    sketch = None
    while sketch is None:
        try:
            sketch = _sketch(name, features_only=True, **{**optional, **kwargs})
        except TypeError as error:
            unknown = [keyword for keyword in optional if keyword not in kwargs and repr(keyword) in str(error)]
            if not unknown:
                raise
            del optional[unknown[0]]
    info: Any = sketch.feature_info
    kwargs = {**optional, **kwargs}
    if coarsest is not None and "out_indices" not in kwargs:
        limit = max(coarsest, min(info.reduction()))
        used = zip(info.out_indices, info.reduction(), strict=True)
        kwargs["out_indices"] = tuple(index for index, stride in used if stride <= limit)
    try:
        return timm.create_model(name, pretrained=pretrained, features_only=True, **kwargs)
    except RuntimeError as error:
        if "No pretrained weights exist" not in str(error):
            raise
        raise GlocalError(f"{name}: no public location of pretrained weights is known; give weights='FILE'") from None


def _sketch(name: str, **kwargs: Any) -> nn.Module:
    """The model on the meta device, if its constructor allows it."""
    try:
        with torch.device("meta"):
            return timm.create_model(name, **kwargs)
    except (RuntimeError, NotImplementedError):
        return timm.create_model(name, **kwargs)


def _freeze(backbone: nn.Module, stages: int) -> None:
    """Freeze all modules up to the end of a stage; modules are registered in the order of use."""
    info: Any = backbone.feature_info
    modules = info.module_name()
    if not 0 <= stages <= len(modules):
        raise GlocalError(f"frozen_stages: expected 0 to {len(modules)} for this backbone, got {stages}")
    if not stages:
        return
    # a wrapped model prefixes the names, an unwrapped one may flatten them: stages.0, stages_0
    ends = [f"{prefix}{modules[stages - 1].replace('.', dot)}" for prefix in ("", "model.") for dot in (".", "_")]
    inside = tuple(f"{end}." for end in ends)
    named = list(backbone.named_modules())
    last = max(i for i, (name, _) in enumerate(named) if name in ends or name.startswith(inside))
    for _, module in named[: last + 1]:
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)


def image_statistics(backbone: nn.Module) -> tuple[list[float], list[float]]:
    """Mean and std from the backbone's configuration, by default ImageNet's."""
    cfg: Mapping[str, Any] = getattr(backbone, "pretrained_cfg", None) or {}
    return list(cfg.get("mean") or IMAGENET_DEFAULT_MEAN), list(cfg.get("std") or IMAGENET_DEFAULT_STD)


def check_keywords(what: str, given: Iterable[str], *takers: Callable[..., Any], more: Iterable[str] = ()) -> None:
    """Reject keywords that none of the callables takes; the underlying libraries would ignore them.

    Raises:
        GlocalError: with the nearest known keyword.
    """
    known = {*more, *(name for taker in takers for name in inspect.signature(taker).parameters)}
    for name in given:
        if name not in known:
            raise GlocalError(f"{what}: no keyword {name!r}{nearest(name, known)}")
