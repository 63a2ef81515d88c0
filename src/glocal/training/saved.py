"""A trained model on disk: the one format that every command writes and reads.

    FOLDER/model.safetensors   the weights; its metadata holds the text of config.json and a digest over both
    FOLDER/config.json         architecture, keywords, classes, preprocessing, as timm writes them

``timm.create_model("local-dir:FOLDER", pretrained=True)`` gives the same model; model.safetensors alone is complete.

A file is untrusted: nothing in it is run, imported or looked up elsewhere; the architecture is a name in timm's
registry, its keywords are of a closed list, and shapes are compared before anything is allocated. The digest tells
damage, not forgery.
"""

import hashlib
import inspect
import json
import math
import os
import stat
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import safetensors.torch
import timm
import torch
from safetensors import SafetensorError
from timm.models import model_entrypoint
from timm.models._hub import save_config_for_hf
from torch import nn

from glocal.errors import CheckpointError, GlocalError, nearest
from glocal.files import atomic_write_bytes, printable

WEIGHTS, CONFIG = "model.safetensors", "config.json"
VERSION = "1"
MAX_HEADER = 8 * 2**20
"""Bytes of a header or a config.json: room for 50,000 tensors or class names; more would only be slow to refuse."""
IMAGE_SIZES = range(8, 4097)
_OURS = ("glocal", "config", "digest")  # of the metadata; a file has all of them or none
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
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
_AGAIN = "save it again, or take another file"

Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Type and shape of each tensor, by its name."""


@dataclass(frozen=True, eq=False)
class SavedModel:
    """A trained classifier as its file has it.

    Attributes:
        model: (B, 3, S, S) normalised images -> (B, K) logits; on the CPU, in eval mode.
        name: its architecture, a name of glocal or timm.
        classes: the K class names, in the order of the logits; "0", "1", ... where the file names none.
        image_size: S, side in pixels.
        crop_pct: share of the resized shorter side that the centre crop keeps, see `glocal.training.fit`.
        mean: by channel, of pixels in [0, 1].
        std: by channel, of pixels in [0, 1].
        digest: SHA-256 over configuration and weights, as hex, checked; None for a file that glocal did not write.
    """

    model: nn.Module
    name: str
    classes: tuple[str, ...]
    image_size: int
    crop_pct: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str | None

    @property
    def identity(self) -> str:
        """The digest; of a file without one, the SHA-256 over what was loaded."""
        loaded = [self.name, self.classes, self.image_size, self.crop_pct, self.mean, self.std]
        return self.digest or _digest(json.dumps(loaded), self.model.state_dict())


def save_model(
    model: nn.Module,
    folder: str | Path,
    *,
    classes: Sequence[str],
    image_size: int,
    crop_pct: float = 1.0,
    model_args: Mapping[str, Any] | None = None,
) -> None:
    """Write a model of timm's factory, glocal's among them, into a folder; equal models give equal bytes.

    Args:
        model: the classifier; it is not changed.
        folder: made if it is not there; a model in it is replaced.
        classes: one name for each logit.
        image_size: side in pixels of its images.
        crop_pct: see `SavedModel`.
        model_args: keywords it was made with that timm's factory does not remember.

    Raises:
        GlocalError: if a weight is not finite, or what is written could not be loaded again.
        OSError: if it cannot be written; the folder then has the model from before, or one without its config.json
            beside.
    """
    folder = Path(folder)
    config = _config_text(model, classes, image_size, crop_pct, model_args)
    # cloned: safetensors refuses tensors that share memory, and layouts such as channels-last are not of the file
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    if name := _first_not_finite(tensors):
        raise GlocalError(f"model: expected finite weights, got NaN or infinity in {name}; it is not saved")
    try:
        description = _describe(config, len(tensors))
        differences = _differences(_layout(_on_meta(description)), _layout_of(tensors))
    except _FileError as error:
        raise GlocalError(f"model: cannot be saved so that it loads again: {error}") from error
    if differences:
        raise GlocalError(
            f"model: cannot be saved so that it loads again: it is not the {description.name} that timm makes from its "
            f"keywords ({_some(differences)}); give what it was made with as model_args"
        )
    metadata = {"format": "pt", "glocal": VERSION, "config": config, "digest": _digest(config, tensors)}
    content = _serialised(tensors, metadata)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(folder / CONFIG, config.encode())
    atomic_write_bytes(folder / WEIGHTS, content)


def load_model(path: str | Path) -> SavedModel:
    """Read a model that `save_model` wrote, or one in the format of timm and Hugging Face.

    Args:
        path: the .safetensors file, or the folder it is in: of a run, of one run of a comparison, of a checkpoint.

    Raises:
        CheckpointError: if there is none, it is damaged, or it is not what its configuration says.
    """
    file = _find(Path(path))
    try:
        return _load(file)
    except _FileError as error:
        reason, advice = error.reason, error.advice
    except RecursionError:
        reason, advice = "its configuration is nested too deeply", _AGAIN
    except OSError as error:
        reason, advice = f"cannot be read ({error.strerror or error})", "check the path and its permissions"
    except (MemoryError, torch.OutOfMemoryError):
        reason, advice = "does not fit into memory", "free some, or use another machine"
    raise CheckpointError(f"{printable(file)}: {printable(reason)}; {advice}")


class _FileError(Exception):
    """What is wrong with a file, and what to do; `load_model` adds the path."""

    def __init__(self, reason: str, advice: str = _AGAIN) -> None:
        super().__init__(reason)
        self.reason, self.advice = reason, advice


@dataclass(frozen=True)
class _Description:
    """A configuration that has been checked."""

    name: str
    keywords: dict[str, Any]
    classes: tuple[str, ...]
    image_size: int
    crop_pct: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


# Where the file is.


def _find(path: Path) -> Path:
    if not path.is_dir():
        return path
    if (path / WEIGHTS).exists():
        return path / WEIGHTS
    found = [
        file.parent for pattern in ("runs/*", "checkpoints/*") for file in sorted(path.glob(f"{pattern}/{WEIGHTS}"))
    ]
    if found:
        names = "".join(f"\n  {printable(folder)}" for folder in found[:20])
        more = f"\n  and {len(found) - 20} more" if len(found) > 20 else ""
        raise CheckpointError(
            f"{printable(path)}: expected one model, got a folder of {len(found)}; choose one:{names}{more}"
        )
    raise CheckpointError(
        f"{printable(path)}: expected a folder with {WEIGHTS}, got one without; give the folder of a run or the file"
    )


def _load(path: Path) -> SavedModel:
    with _open(path) as file:
        if path.suffix != ".safetensors":
            raise _FileError("expected a .safetensors file, got another", "`glocal convert` makes one of a .pth")
        size = os.fstat(file.fileno()).st_size
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or not 2 <= length <= size - 8:
            raise _FileError("is damaged or no safetensors file (no whole header)")
        if length > MAX_HEADER:
            raise _FileError(f"has a header of {length:,} bytes, the limit is {MAX_HEADER:,}")
        text = file.read(length)
        header = _object(text, "its header")
        metadata = header.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict):
            raise _FileError("is damaged or no safetensors file (its metadata is no object)")
        config, digest = _config_of(metadata, path)
        description = _describe(config, len(header))
        expected = _layout(_on_meta(description))
        _refuse(description.name, _differences(expected, _layout_in(header)))
        num_bytes = sum(dtype.itemsize * math.prod(shape) for dtype, shape in expected.values())
        if size != 8 + length + num_bytes:  # before it is read: the rest could be of any size
            raise _FileError(
                f"expected {8 + length + num_bytes:,} bytes, got {size:,}: it is cut off or has something after its end"
            )
        content = prefix + text + file.read(num_bytes)
    try:
        tensors = safetensors.torch.load(content)
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise _FileError(f"is damaged or no safetensors file ({_first_line(error)})") from error
    del content
    # again, for the library may read an ambiguous header in another way than we did
    _refuse(description.name, _differences(expected, _layout_of(tensors)))
    if digest is not None and digest != _digest(config, tensors):
        raise _FileError(
            "has changed since it was written (its digest differs)", "take a copy that is whole, or save it again"
        )
    if name := _first_not_finite(tensors):
        raise _FileError(
            f"expected finite weights, got NaN or infinity in {name}", "train it again with a lower learning rate"
        )
    model = _build(description)
    model.load_state_dict(tensors)
    return SavedModel(
        model=model.eval(),
        name=description.name,
        classes=description.classes,
        image_size=description.image_size,
        crop_pct=description.crop_pct,
        mean=description.mean,
        std=description.std,
        digest=digest,
    )


def _config_of(metadata: Mapping[str, Any], path: Path) -> tuple[str, str | None]:
    """The text of the configuration and the digest; None for a file that glocal did not write."""
    beside = path.with_name(CONFIG)
    present = [name for name in _OURS if name in metadata]
    if not present:
        if not beside.exists():
            raise _FileError(
                f"does not say which model it is of, and no {CONFIG} is beside it", f"put its {CONFIG} there"
            )
        return _read_config(beside), None
    if len(present) < len(_OURS) or not all(isinstance(metadata[name], str) for name in _OURS):
        raise _FileError("is damaged (its metadata is not complete)")
    if metadata["glocal"] != VERSION:
        raise _FileError(f"expected version {VERSION} of the format, got {metadata['glocal'][:20]}", "update glocal")
    config = metadata["config"]
    # Only where the name says that the two belong together: a model may lie in a folder with others.
    if (
        path.name == WEIGHTS
        and beside.exists()
        and _object(_read_config(beside), CONFIG) != _object(config, "its configuration")
    ):
        raise _FileError(
            f"the {CONFIG} beside it is not the one it was written with",
            f"delete that {CONFIG}, or save the model again",
        )
    return config, metadata["digest"]


def _read_config(path: Path) -> str:
    with _open(path) as file:
        content = file.read(MAX_HEADER + 1)
    if len(content) > MAX_HEADER:
        raise _FileError(f"the {CONFIG} beside it has more than {MAX_HEADER:,} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise _FileError(f"the {CONFIG} beside it is no UTF-8 text") from None


def _open(path: Path) -> BinaryIO:
    if not path.exists():
        raise _FileError("no such file or folder", "check the path")
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
        raise _FileError(f"{path.name} is no regular file", "check the path")
    return path.open("rb")


# What a configuration may say.


def _object(text: str | bytes, what: str) -> dict[str, Any]:
    """JSON text -> its object."""
    try:
        value = json.loads(text)
    except ValueError as error:  # JSON, UTF-8, and integers of too many digits
        raise _FileError(f"{what} is damaged or no JSON ({_first_line(error)})") from None
    if not isinstance(value, dict):
        raise _FileError(f"{what}: expected a JSON object, got {_kind(value)}")
    return value


def _describe(text: str, num_tensors: int) -> _Description:
    """Check a configuration; depths are bounded by the tensors there are, for each block has one."""
    config = _object(text, "its configuration")
    name, cfg, args = config.get("architecture"), config.get("pretrained_cfg"), config.get("model_args", {})
    if not isinstance(name, str) or "." in name or not timm.is_model(name):
        known = nearest(name, timm.list_models()) if isinstance(name, str) and len(name) < 100 else ""
        raise _FileError(
            f"architecture: expected a name of glocal or timm, got {_short(name)}{known}", "`glocal models` lists ours"
        )
    if not isinstance(cfg, dict) or not isinstance(args, dict):
        raise _FileError("expected pretrained_cfg and model_args as JSON objects in its configuration")
    num_classes = config.get("num_classes", cfg.get("num_classes"))
    if not _is_int(num_classes) or num_classes < 1:
        raise _FileError(f"num_classes: expected a number of at least 1, got {_short(num_classes)}")
    keywords = {key: _keyword(name, key, value, num_tensors) for key, value in args.items()}
    if keywords.setdefault("num_classes", num_classes) != num_classes:
        raise _FileError(f"num_classes: expected {num_classes} as in model_args, got {_short(keywords['num_classes'])}")
    if keywords.get("in_chans", 3) != 3:
        raise _FileError(f"in_chans: expected 3, for images are RGB, got {_short(keywords['in_chans'])}")
    size = cfg.get("input_size")
    if not (_is_list(size, 3) and size[0] == 3 and _is_int(size[1]) and size[1] == size[2] and size[1] in IMAGE_SIZES):
        raise _FileError(
            f"input_size: expected [3, S, S], S from {IMAGE_SIZES[0]} to {IMAGE_SIZES[-1]}, got {_short(size)}"
        )
    crop_pct = cfg.get("crop_pct", 1.0)
    if not _is_number(crop_pct) or not 0.1 <= crop_pct <= 1:
        raise _FileError(f"crop_pct: expected a number from 0.1 to 1, got {_short(crop_pct)}")
    for key, wanted in (("interpolation", "bicubic"), ("crop_mode", "center")):
        if cfg.get(key, wanted) != wanted:  # it would be given images of another kind than it learned from
            raise _FileError(
                f"{key}: expected {wanted}, got {_short(cfg[key])}", "glocal prepares images in no other way"
            )
    return _Description(
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
    if not (_is_list(values, 3) and all(_is_number(value) and low <= value <= 1e3 for value in values)):
        raise _FileError(f"{key}: expected 3 numbers from {low:g}, got {_short(values)}")
    return tuple(float(value) for value in values)


def _classes(names: Any, num_classes: int) -> tuple[str, ...]:
    if names is None and num_classes <= 100_000:
        return tuple(str(i) for i in range(num_classes))
    if not isinstance(names, list) or len(names) != num_classes or not all(isinstance(n, str) and n for n in names):
        got = f"{len(names)} entries" if isinstance(names, list) else _kind(names)
        raise _FileError(f"label_names: expected a list of {num_classes} names, got {got}")
    if len(set(names)) < num_classes:
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise _FileError(f"label_names: expected each class once, got {_short(twice)} twice")
    return tuple(names)


def _keyword(architecture: str, key: str, value: Any, num_tensors: int) -> Any:
    """A keyword of a model that is known and plain; lists as tuples."""
    known = _keywords(architecture)
    if key not in known:
        raise _FileError(
            f"model_args: {architecture} has no keyword {_short(key)} that a file may set{nearest(key[:100], known)}"
        )
    numbers = [*_numbers(value)]
    if not _is_plain(value) or not all(-(2**16) <= n <= 2**16 for n in numbers):  # NaN is not
        raise _FileError(f"model_args: {key}: expected plain values within limits, got {_short(value)}")
    if key.startswith(_REPEATS) and sum(numbers) > num_tensors:
        raise _FileError(
            f"model_args: {key}: expected at most {num_tensors}, the tensors there are, got {_short(value)}"
        )
    if key == "img_size" and any(n not in IMAGE_SIZES for n in numbers):
        raise _FileError(f"model_args: img_size: expected {IMAGE_SIZES[0]} to {IMAGE_SIZES[-1]}, got {_short(value)}")
    return _as_tuple(value)


def _keywords(architecture: str) -> frozenset[str]:
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


def _config_text(
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


def _on_meta(description: _Description) -> nn.Module:
    with torch.device("meta"):
        return _build(description)


def _build(description: _Description) -> nn.Module:
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
        raise _FileError(f"no {description.name} can be made as it says ({_first_line(error)})") from error


# Tensors.


def _layout(model: nn.Module) -> Layout:
    return _layout_of(model.state_dict())


def _layout_of(tensors: Mapping[str, torch.Tensor]) -> Layout:
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def _layout_in(header: Mapping[str, Any]) -> Layout:
    """What the header of a safetensors file says of its tensors."""
    layout = {}
    for name, entry in header.items():
        dtype, shape = (entry.get("dtype"), entry.get("shape")) if isinstance(entry, dict) else (None, None)
        if not (isinstance(dtype, str) and isinstance(shape, list) and all(_is_int(n) and n >= 0 for n in shape)):
            raise _FileError(f"is damaged (its header says nothing sensible of {_short(name)})")
        if dtype not in _DTYPES:
            raise _FileError(f"{_short(name)}: expected one of the types {', '.join(_DTYPES)}, got {_short(dtype)}")
        layout[name] = _DTYPES[dtype], tuple(shape)
    return layout


def _differences(expected: Layout, got: Layout) -> list[str]:
    problems = [f"missing: {name}" for name in expected if name not in got]
    problems += [f"left over: {_short(name)}" for name in got if name not in expected]
    problems += [
        f"{name}: expected {_form(layout)}, got {_form(got[name])}"
        for name, layout in expected.items()
        if name in got and got[name] != layout
    ]
    return problems


def _refuse(architecture: str, differences: list[str]) -> None:
    if differences:
        raise _FileError(f"is not of the {architecture} it describes ({_some(differences)})")


def _form(layout: tuple[torch.dtype, tuple[int, ...]]) -> str:
    dtype, shape = layout
    return f"{str(dtype).removeprefix('torch.')} {_short(list(shape))}"


def _first_not_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    return next((n for n, t in tensors.items() if t.is_floating_point() and not bool(t.isfinite().all())), None)


def _digest(config: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over the configuration and each tensor in the order of names: name, type, shape, bytes."""
    digest = hashlib.sha256(json.dumps(config).encode() + b"\n")
    for name, tensor in sorted(tensors.items()):
        form = [name, str(tensor.dtype), list(tensor.shape)]
        digest.update(json.dumps(form).encode() + b"\n")
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _serialised(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file; the library writes metadata in random order, which would make equal models unequal files."""
    content = safetensors.torch.save(dict(tensors))
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(
        {"__metadata__": metadata, **json.loads(content[8 : 8 + length])}, separators=(",", ":")
    ).encode()
    header += b" " * (-len(header) % 8)  # tensors begin at multiples of 8
    if len(header) > MAX_HEADER:
        raise GlocalError(
            f"model: expected names of classes and tensors of {MAX_HEADER:,} bytes at most, got {len(header):,}"
        )
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


# Words.


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> TypeGuard[int | float]:
    """Whether it is a finite number that fits into a float; NaN compares as false."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def _is_list(value: Any, length: int) -> TypeGuard[list[Any]]:
    return isinstance(value, list) and len(value) == length


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a text", type(None): "nothing"}.get(type(value), "a number")


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, str | int | float | bool | None) else _kind(value)
    if isinstance(value, list) and len(value) <= 8 and all(isinstance(v, int | float) for v in value):
        text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _some(items: Iterable[str]) -> str:
    items = list(items)
    return "; ".join(items[:3]) + (f"; and {len(items) - 3} more" if len(items) > 3 else "")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


__all__ = ["CONFIG", "WEIGHTS", "SavedModel", "load_model", "save_model"]
