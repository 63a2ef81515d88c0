"""Metadata of an exported file: a JSON text under the key ``glocal``, in the place that its format provides.

    onnx                 metadata_props["glocal"]
    openvino             rt_info "glocal" of the .xml
    torch-export, aoti   extra/glocal.json in the .pt2

Files are untrusted: keys are fixed, and each value is checked by type and range.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, TypeGuard, get_args

Format = Literal["onnx", "openvino", "torch-export", "aoti", "safetensors"]
Runtime = Literal["onnxruntime", "openvino", "torch"]
Size = int | tuple[int, int]
"""Of an image in pixels: its side, or height and width."""
FORMATS: tuple[Format, ...] = get_args(Format)
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")  # Pillow's, lower case
KEY = "glocal"
VERSION = 1
STEP = 32
"""Height and width are multiples of this many pixels in files of dynamic size."""
NO_DIGEST = "0" * 64
MAX_TEXT = 8 * 2**20
SIDES = range(8, 4097)


def height_and_width(size: Size) -> tuple[int, int]:
    """Height and width of an image size."""
    return (size, size) if isinstance(size, int) else size


class InvalidFileError(Exception):
    """The fault of a file, and what to do; the caller adds the path."""

    def __init__(self, reason: str, advice: str = "export it again, or use another file") -> None:
        super().__init__(reason)
        self.reason, self.advice = reason, advice


@dataclass(frozen=True)
class Description:
    """Metadata of an exported model.

    Attributes:
        format: of the file.
        name: the model's architecture.
        classes: the K class names, in the order of the logits.
        image_size: height and width in pixels.
        crop_pct: fraction of the resized image that the centre crop keeps, see `glocal.data.transforms.resize_crop`.
        interpolation: of the resize, Pillow's name.
        mean: by channel, of pixels in [0, 1].
        std: by channel, of pixels in [0, 1].
        dynamic: dynamic dimensions: none, ``batch``, or ``batch`` and ``size``.
        batch_size: if the batch is not dynamic.
        half: whether weights have 16 bits.
        digest: SHA-256 over the file with a zero digest; zeros for formats with checksums.
    """

    format: Format
    name: str
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    crop_pct: float
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dynamic: tuple[str, ...] = ()
    batch_size: int = 1
    half: bool = False
    digest: str = NO_DIGEST

    def text(self) -> str:
        """As JSON, in ASCII, with `NO_DIGEST`."""
        return json.dumps({"version": VERSION, **asdict(replace(self, digest=NO_DIGEST))})

    @classmethod
    def of(cls, text: str | bytes) -> "Description":
        """Check a text.

        Raises:
            InvalidFileError: if it is not the output of `text`.
        """
        if len(text) > MAX_TEXT:
            raise InvalidFileError(f"its description has {len(text):,} bytes, the limit is {MAX_TEXT:,}")
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            raise InvalidFileError("its description is damaged (not JSON)") from None
        if not isinstance(found, dict):
            raise InvalidFileError("its description is damaged (not a JSON object)")
        if found.pop("version", None) != VERSION:
            raise InvalidFileError(f"expected version {VERSION} of its description, got another", "update glocal")
        known = {field.name for field in fields(cls)}
        if found.keys() != known:
            raise InvalidFileError(f"its description is damaged (expected the keys {', '.join(sorted(known))})")
        wrong = [key for key, is_right in _CHECKS.items() if not is_right(found[key])]
        if wrong:
            raise InvalidFileError(f"its description has invalid {', '.join(wrong)}")
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in found.items()}
        return cls(**values)


def _is_list(value: Any, length: int) -> TypeGuard[list[Any]]:
    return isinstance(value, list) and len(value) == length


def _is_number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _is_count(value: Any, allowed: range) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in allowed


def _are_numbers(value: Any, low: float) -> bool:
    return _is_list(value, 3) and all(_is_number(item, low, 1e3) for item in value)


def _are_classes(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(name, str) and name for name in value)
        and len(set(value)) == len(value)
    )


def _is_one_of(choices: Sequence[Any]) -> Any:
    return lambda value: value in choices


_CHECKS: dict[str, Any] = {
    "format": lambda value: isinstance(value, str) and value in FORMATS,
    "name": lambda value: isinstance(value, str) and 0 < len(value) <= 200,
    "classes": _are_classes,
    "image_size": lambda value: _is_list(value, 2) and all(_is_count(side, SIDES) for side in value),
    "crop_pct": lambda value: _is_number(value, 0.1, 1),
    "interpolation": _is_one_of(INTERPOLATIONS),
    "mean": lambda value: _are_numbers(value, 0.0),
    "std": lambda value: _are_numbers(value, 1e-6),
    "dynamic": _is_one_of(([], ["batch"], ["batch", "size"])),
    "batch_size": lambda value: _is_count(value, range(1, 65537)),
    "half": lambda value: isinstance(value, bool),
    "digest": lambda value: isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef"),
}
