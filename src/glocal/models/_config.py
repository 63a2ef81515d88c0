"""The config.json of a saved model, validated before anything is built from it.

Two forms: a classifier's, as timm and Hugging Face write it, and ours of a detector or segmenter.
"""

import inspect
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import timm
from timm.models import model_entrypoint
from timm.models._hub import save_config_for_hf
from torch import nn

from glocal.errors import GlocalError, first_line, kind_of, nearest, short
from glocal.heads import settings

CONFIG = "config.json"
IMAGE_SIZES = range(8, 4097)
MAX_CLASSES = 100_000
_KEYWORDS = frozenset(("num_classes", "img_size", "global_pool", "drop_path_rate", "drop_rate", "in_chans"))
# Further keywords for timm's models; glocal's take the keywords of their class.
_TIMM_KEYWORDS = _KEYWORDS | frozenset((
    "attn_drop_rate", "class_token", "dynamic_img_size", "init_values", "mlp_ratio", "patch_size", "pos_drop_rate",
    "pos_embed", "proj_drop_rate", "qk_norm", "qkv_bias", "reg_tokens", "strict_img_size", "window_size",
))  # fmt: skip
# Keywords of timm's factory and of modules about where weights come from or how to run, not about the architecture.
_FORBIDDEN = (
    "_", "pretrained", "checkpoint", "cache", "scriptable", "exportable", "no_jit", "features", "out_indices", "device",
    "dtype", "blocks", "self", "args", "kwargs",
)  # fmt: skip
_REPEATS = ("depth", "num_med_block")  # keywords that set the number of blocks
_HEAD_KEYS = ("task", "head", "backbone", "classes", "image_size", "mean", "std")
_HEAD_OPTIONAL = ("preset", "norm", "options", "category_ids")
AGAIN = "save it again, or take another file"


class FileError(Exception):
    """The fault of a file and what to do; `load_model` adds the path."""

    def __init__(self, reason: str, advice: str = AGAIN) -> None:
        super().__init__(reason)
        self.reason, self.advice = reason, advice


def check_config(text: str, num_tensors: int) -> dict[str, Any]:
    """The text of a config.json -> the attributes of a `ModelConfig`.

    Args:
        text: of the file.
        num_tensors: number of tensors of the model, an upper bound of its depth.

    Raises:
        FileError: if it describes no model of glocal or timm.
    """
    config = json_object(text, "its configuration")
    check = _check_head if "task" in config else _check_classifier
    return check(config, num_tensors)


def timm_config(
    model: nn.Module, classes: Sequence[str], image_size: int, crop_pct: float, keywords: Mapping[str, Any]
) -> str:
    """The config.json that timm writes for a classifier.

    Raises:
        GlocalError: if the model was not created by timm.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / CONFIG
        try:
            save_config_for_hf(
                model,
                os.fspath(file),
                model_config={"label_names": list(classes)},
                model_args=dict(keywords),
                data_config={
                    "input_size": (3, image_size, image_size),
                    "crop_pct": crop_pct,
                    "interpolation": "bicubic",
                    "crop_mode": "center",
                },
            )
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise GlocalError(
                f"model: expected one created by timm, got one without a timm configuration: {error}"
            ) from error
        return file.read_text(encoding="utf-8")


def json_object(text: str | bytes, what: str) -> dict[str, Any]:
    """JSON text -> its object."""
    try:
        value = json.loads(text)
    except ValueError as error:  # JSON, UTF-8, and integers of too many digits
        raise FileError(f"{what} is damaged or not JSON ({first_line(error)})") from None
    if not isinstance(value, dict):
        raise FileError(f"{what}: expected a JSON object, got {kind_of(value)}")
    return value


def _check_classifier(config: dict[str, Any], num_tensors: int) -> dict[str, Any]:
    name, cfg, args = config.get("architecture"), config.get("pretrained_cfg"), config.get("model_args", {})
    if not isinstance(name, str) or "." in name or not timm.is_model(name):
        known = nearest(name, timm.list_models()) if isinstance(name, str) and len(name) < 100 else ""
        raise FileError(
            f"architecture: expected a name of glocal or timm, got {short(name)}{known}", "`glocal models` lists ours"
        )
    if not isinstance(cfg, dict) or not isinstance(args, dict):
        raise FileError("expected pretrained_cfg and model_args as JSON objects in its configuration")
    num_classes = config.get("num_classes", cfg.get("num_classes"))
    if not _is_int(num_classes) or num_classes < 1:
        raise FileError(f"num_classes: expected a number of at least 1, got {short(num_classes)}")
    keywords = {key: _keyword(name, key, value, num_tensors) for key, value in args.items()}
    for key, expected, why in (("num_classes", num_classes, "the classes"), ("in_chans", 3, "for images are RGB")):
        if keywords.get(key, expected) != expected:
            raise FileError(f"model_args: {key}: expected {expected}, {why}, got {short(keywords[key])}")
    size = cfg.get("input_size")
    if not (_is_list(size, 3) and size[0] == 3 and size[1] == size[2] and _is_size(size[1], IMAGE_SIZES)):
        raise FileError(
            f"input_size: expected [3, S, S], S from {IMAGE_SIZES[0]} to {IMAGE_SIZES[-1]}, got {short(size)}"
        )
    crop_pct = cfg.get("crop_pct", 1.0)
    if not _is_number(crop_pct) or not 0.1 <= crop_pct <= 1:
        raise FileError(f"crop_pct: expected a number from 0.1 to 1, got {short(crop_pct)}")
    for key, wanted in (("interpolation", "bicubic"), ("crop_mode", "center")):
        if cfg.get(key, wanted) != wanted:  # otherwise inference would preprocess unlike training
            raise FileError(
                f"{key}: expected {wanted}, got {short(cfg[key])}", "glocal supports no other preprocessing"
            )
    names = config.get("label_names", cfg.get("label_names"))
    if names is None and num_classes <= MAX_CLASSES:
        names = [str(i) for i in range(num_classes)]
    return {
        "task": "classification",
        "architecture": name,
        "classes": _classes("label_names", names, num_classes, num_classes),
        "image_size": size[1],
        "mean": _statistic("mean", cfg.get("mean"), 0.0),
        "std": _statistic("std", cfg.get("std"), 1e-6),
        "crop_pct": float(crop_pct),
        "keywords": keywords,
    }


def _check_head(config: dict[str, Any], num_tensors: int) -> dict[str, Any]:
    task, known = config.get("task"), (*_HEAD_KEYS, *_HEAD_OPTIONAL)
    if task not in tuple(settings.HEADS):
        raise FileError(f"task: expected one of {', '.join(settings.HEADS)}, got {short(task)}")
    if others := [key for key in config if key not in known]:
        raise FileError(f"unknown setting {short(others[0])}{nearest(others[0][:100], known)}")
    if missing := [key for key in _HEAD_KEYS if key not in config]:
        raise FileError(f"its configuration lacks {missing[0]}")
    for key, choices in (("head", settings.HEADS[task]), ("norm", settings.NORMS)):
        if config.get(key, settings.NORMS[0]) not in choices:
            raise FileError(f"{key}: expected one of {', '.join(choices)}, got {short(config.get(key))}")
    name, preset, size = config["backbone"], config.get("preset", ""), config["image_size"]
    if not isinstance(name, str) or not name.isidentifier() or not timm.is_model(name):
        raise FileError(f"backbone: expected a name of glocal or timm, got {short(name)}", "`glocal models` lists ours")
    presets = settings.PRESETS[task]
    if preset not in (*settings.UNNAMED[task], *presets):
        raise FileError(f"preset: expected one of {', '.join(presets)} for {task}, got {short(preset)}")
    if not _is_size(size, settings.IMAGE_SIZES):
        low, high = settings.IMAGE_SIZES[0], settings.IMAGE_SIZES[-1]
        raise FileError(f"image_size: expected {low} to {high}, got {short(size)}")
    classes = _classes("classes", config["classes"], 1, settings.MAX_CLASSES[task])
    options = config.get("options", {})
    if not isinstance(options, dict):
        raise FileError(f"options: expected an object, got {short(options)}")
    for key, value in options.items():
        if reason := settings.option_fault(task, key, value):
            raise FileError(f"options: {reason}")
        if key.endswith("_layers") and value > num_tensors:
            raise FileError(
                f"options: {key}: expected at most {num_tensors}, the number of tensors, got {short(value)}"
            )
    ids = config.get("category_ids", [])
    fits = isinstance(ids, list) and len(ids) in (0, len(classes)) and all(_is_int(i) and abs(i) < 2**53 for i in ids)
    if not fits or len(set(ids)) < len(ids):
        raise FileError(f"category_ids: expected {len(classes)} different whole numbers, or none, got {short(ids)}")
    return {
        "task": task,
        "architecture": name,
        "classes": classes,
        "image_size": size,
        "mean": _statistic("mean", config["mean"], 0.0),
        "std": _statistic("std", config["std"], 1e-6),
        "head": config["head"],
        "preset": preset,
        "norm": config.get("norm", settings.NORMS[0]),
        "options": options,
        "category_ids": tuple(ids),
    }


# Classes, mean and std.


def _classes(key: str, names: Any, low: int, high: int) -> tuple[str, ...]:
    if (
        not isinstance(names, list)
        or not low <= len(names) <= high
        or not all(isinstance(name, str) and name for name in names)
    ):
        got = f"{len(names)} entries" if isinstance(names, list) else short(names)
        expected = str(low) if low == high else f"{low} to {high}"
        raise FileError(f"{key}: expected a list of {expected} names, got {got}")
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise FileError(f"{key}: expected each class once, got {short(twice)} twice")
    return tuple(names)


def _statistic(key: str, values: Any, low: float) -> tuple[float, float, float]:
    if not _is_list(values, 3) or not all(_is_number(value) and low <= value <= 1e3 for value in values):
        raise FileError(f"{key}: expected 3 numbers from {low:g}, got {short(values)}")
    red, green, blue = map(float, values)
    return red, green, blue


# Keywords of a classifier.


def known_keywords(architecture: str) -> frozenset[str]:
    """Keywords of the architecture: for glocal's models those of the class, for timm's a list of common ones."""
    cls = inspect.signature(model_entrypoint(architecture)).return_annotation
    if not (isinstance(cls, type) and cls.__module__.startswith("glocal.")):
        return _TIMM_KEYWORDS
    own = {
        name
        for base in cls.__mro__
        if base.__module__.startswith("glocal.") and "__init__" in vars(base)
        for name in inspect.signature(vars(base)["__init__"]).parameters
        if not name.startswith(_FORBIDDEN)
    }
    return _KEYWORDS | own


def _keyword(architecture: str, key: str, value: Any, num_tensors: int) -> Any:
    """The value of a known keyword, checked to be plain; lists become tuples."""
    known = known_keywords(architecture)
    if key not in known:
        raise FileError(
            f"model_args: {architecture} has no keyword {short(key)} that a file may set{nearest(key[:100], known)}"
        )
    numbers = [*_numbers(value)]
    if not _is_plain(value) or not all(-(2**16) <= n <= 2**16 for n in numbers):  # NaN is not
        raise FileError(f"model_args: {key}: expected plain values within limits, got {short(value)}")
    if key.startswith(_REPEATS) and sum(numbers) > num_tensors:
        raise FileError(f"model_args: {key}: expected at most {num_tensors}, the number of tensors, got {short(value)}")
    if key == "img_size" and any(n not in IMAGE_SIZES for n in numbers):
        raise FileError(f"model_args: img_size: expected {IMAGE_SIZES[0]} to {IMAGE_SIZES[-1]}, got {short(value)}")
    return _as_tuple(value)


def _is_plain(value: Any, depth: int = 3) -> bool:
    if isinstance(value, list | tuple):
        return depth > 0 and len(value) <= 64 and all(_is_plain(item, depth - 1) for item in value)
    return value is None or isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= 64)


def _numbers(value: Any) -> Iterator[int | float]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float):
        yield value


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list | tuple) else value


# Values of JSON.


def _is_int(value: Any) -> TypeGuard[int]:
    """Whether it is an integer, not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> TypeGuard[int | float]:
    """Whether it is a finite number that fits into a float; NaN compares as false."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def _is_list(value: Any, length: int) -> TypeGuard[list[Any]]:
    return isinstance(value, list) and len(value) == length


def _is_size(value: Any, allowed: range) -> bool:
    return _is_int(value) and value in allowed
