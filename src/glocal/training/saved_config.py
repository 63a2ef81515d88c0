"""What config.json says of a saved model, checked before anything is made of it, and the model it describes."""

import inspect
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import timm
import torch
from timm.models import model_entrypoint
from timm.models._hub import save_config_for_hf
from torch import nn

from glocal.errors import GlocalError, nearest

CONFIG = "config.json"
IMAGE_SIZES = range(8, 4097)
_KEYWORDS = frozenset(("num_classes", "img_size", "global_pool", "drop_path_rate", "drop_rate", "in_chans"))
# What timm's own models may be given beside; glocal's take whatever their class names.
_TIMM_KEYWORDS = _KEYWORDS | frozenset((
    "attn_drop_rate", "class_token", "dynamic_img_size", "init_values", "mlp_ratio", "patch_size", "pos_drop_rate",
    "pos_embed", "proj_drop_rate", "qk_norm", "qkv_bias", "reg_tokens", "strict_img_size", "window_size",
))  # fmt: skip
# Keywords of timm's factory and of modules that say where things come from or how they run, never what the model is.
_FORBIDDEN = (
    "_", "pretrained", "checkpoint", "cache", "scriptable", "exportable", "no_jit", "features", "out_indices", "device",
    "dtype", "blocks", "self", "args", "kwargs",
)  # fmt: skip
_REPEATS = ("depth", "num_med_block")  # keywords that say how often to make a block
AGAIN = "save it again, or take another file"


class FileError(Exception):
    """What is wrong with a file, and what to do; `load_model` adds the path."""

    def __init__(self, reason: str, advice: str = AGAIN) -> None:
        super().__init__(reason)
        self.reason, self.advice = reason, advice


@dataclass(frozen=True)
class Description:
    """A configuration that has been checked."""

    name: str
    keywords: dict[str, Any]
    classes: tuple[str, ...]
    image_size: int
    crop_pct: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


# What a configuration may say.


def json_object(text: str | bytes, what: str) -> dict[str, Any]:
    """JSON text -> its object."""
    try:
        value = json.loads(text)
    except ValueError as error:  # JSON, UTF-8, and integers of too many digits
        raise FileError(f"{what} is damaged or no JSON ({first_line(error)})") from None
    if not isinstance(value, dict):
        raise FileError(f"{what}: expected a JSON object, got {_kind(value)}")
    return value


def describe(text: str, num_tensors: int) -> Description:
    """Check a configuration; depths are bounded by the tensors there are, for each block has one."""
    config = json_object(text, "its configuration")
    if "task" in config:
        raise FileError(
            "expected a classifier, got a detector or segmenter", "`glocal detect` and `glocal segment` take it"
        )
    name, cfg, args = config.get("architecture"), config.get("pretrained_cfg"), config.get("model_args", {})
    if not isinstance(name, str) or "." in name or not timm.is_model(name):
        known = nearest(name, timm.list_models()) if isinstance(name, str) and len(name) < 100 else ""
        raise FileError(
            f"architecture: expected a name of glocal or timm, got {short(name)}{known}", "`glocal models` lists ours"
        )
    if not isinstance(cfg, dict) or not isinstance(args, dict):
        raise FileError("expected pretrained_cfg and model_args as JSON objects in its configuration")
    num_classes = config.get("num_classes", cfg.get("num_classes"))
    if not is_int(num_classes) or num_classes < 1:
        raise FileError(f"num_classes: expected a number of at least 1, got {short(num_classes)}")
    keywords = {key: _keyword(name, key, value, num_tensors) for key, value in args.items()}
    if keywords.setdefault("num_classes", num_classes) != num_classes:
        raise FileError(f"num_classes: expected {num_classes} as in model_args, got {short(keywords['num_classes'])}")
    if keywords.get("in_chans", 3) != 3:
        raise FileError(f"in_chans: expected 3, for images are RGB, got {short(keywords['in_chans'])}")
    size = cfg.get("input_size")
    if not (_is_list(size, 3) and size[0] == 3 and is_int(size[1]) and size[1] == size[2] and size[1] in IMAGE_SIZES):
        raise FileError(
            f"input_size: expected [3, S, S], S from {IMAGE_SIZES[0]} to {IMAGE_SIZES[-1]}, got {short(size)}"
        )
    crop_pct = cfg.get("crop_pct", 1.0)
    if not is_number(crop_pct) or not 0.1 <= crop_pct <= 1:
        raise FileError(f"crop_pct: expected a number from 0.1 to 1, got {short(crop_pct)}")
    for key, wanted in (("interpolation", "bicubic"), ("crop_mode", "center")):
        if cfg.get(key, wanted) != wanted:  # it would be given images of another kind than it learned from
            raise FileError(
                f"{key}: expected {wanted}, got {short(cfg[key])}", "glocal prepares images in no other way"
            )
    return Description(
        name=name,
        keywords=keywords,
        classes=_classes(config.get("label_names", cfg.get("label_names")), num_classes),
        image_size=size[1],
        crop_pct=float(crop_pct),
        mean=_statistic(cfg, "mean", 0.0),
        std=_statistic(cfg, "std", 1e-6),
    )


def _statistic(cfg: Mapping[str, Any], key: str, low: float) -> tuple[float, ...]:
    values = cfg.get(key)
    if not (_is_list(values, 3) and all(is_number(value) and low <= value <= 1e3 for value in values)):
        raise FileError(f"{key}: expected 3 numbers from {low:g}, got {short(values)}")
    return tuple(float(value) for value in values)


def _classes(names: Any, num_classes: int) -> tuple[str, ...]:
    if names is None and num_classes <= 100_000:
        return tuple(str(i) for i in range(num_classes))
    if not isinstance(names, list) or len(names) != num_classes or not all(isinstance(n, str) and n for n in names):
        got = f"{len(names)} entries" if isinstance(names, list) else _kind(names)
        raise FileError(f"label_names: expected a list of {num_classes} names, got {got}")
    if len(set(names)) < num_classes:
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise FileError(f"label_names: expected each class once, got {short(twice)} twice")
    return tuple(names)


def _keyword(architecture: str, key: str, value: Any, num_tensors: int) -> Any:
    """A keyword of a model that is known and plain; lists as tuples."""
    known = known_keywords(architecture)
    if key not in known:
        raise FileError(
            f"model_args: {architecture} has no keyword {short(key)} that a file may set{nearest(key[:100], known)}"
        )
    numbers = [*_numbers(value)]
    if not _is_plain(value) or not all(-(2**16) <= n <= 2**16 for n in numbers):  # NaN is not
        raise FileError(f"model_args: {key}: expected plain values within limits, got {short(value)}")
    if key.startswith(_REPEATS) and sum(numbers) > num_tensors:
        raise FileError(f"model_args: {key}: expected at most {num_tensors}, the tensors there are, got {short(value)}")
    if key == "img_size" and any(n not in IMAGE_SIZES for n in numbers):
        raise FileError(f"model_args: img_size: expected {IMAGE_SIZES[0]} to {IMAGE_SIZES[-1]}, got {short(value)}")
    return _as_tuple(value)


def known_keywords(architecture: str) -> frozenset[str]:
    """Keywords that say what a model is: for glocal's all of its class, for timm's a list of usual ones."""
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


# The model of a configuration.


def config_text(
    model: nn.Module, classes: Sequence[str], image_size: int, crop_pct: float, model_args: Mapping[str, Any] | None
) -> str:
    """What timm would write into config.json."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / CONFIG
        try:
            save_config_for_hf(
                model,
                os.fspath(file),
                model_config={"label_names": list(classes)},
                model_args=dict(model_args or {}),
                data_config={
                    "input_size": (3, image_size, image_size),
                    "crop_pct": crop_pct,
                    "interpolation": "bicubic",
                    "crop_mode": "center",
                },
            )
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise GlocalError(f"model: expected one of timm's factory, got one it cannot describe: {error}") from error
        return file.read_text(encoding="utf-8")


def build(description: Description) -> nn.Module:
    """The model with random weights; the random numbers of others are as before."""
    size = (3, description.image_size, description.image_size)
    overlay = {"input_size": size, "crop_pct": description.crop_pct, "interpolation": "bicubic", "crop_mode": "center"}
    overlay |= {"mean": description.mean, "std": description.std, "num_classes": description.keywords["num_classes"]}
    try:
        with torch.random.fork_rng(devices=[]):
            return timm.create_model(
                description.name, pretrained=False, pretrained_cfg_overlay=overlay, **description.keywords
            )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever values do that no one would give a model
        raise FileError(f"no {description.name} can be made as it says ({first_line(error)})") from error


# Words.


def is_int(value: Any) -> TypeGuard[int]:
    """Whether it is an integer; a bool is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether it is a finite number that fits into a float; NaN compares as false."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def _is_list(value: Any, length: int) -> TypeGuard[list[Any]]:
    return isinstance(value, list) and len(value) == length


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a text", type(None): "nothing"}.get(type(value), "a number")


def short(value: Any) -> str:
    """A value as messages show it, in 80 characters at most."""
    text = repr(value) if isinstance(value, str | int | float | bool | None) else _kind(value)
    if isinstance(value, list) and len(value) <= 8 and all(isinstance(v, int | float) for v in value):
        text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def first_line(error: Exception) -> str:
    """What an error says first, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
