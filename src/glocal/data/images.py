"""The image loader: every command reads every image through `open_image`.

Images are untrusted. What is checked before a pixel is decoded: that the path is a regular file, its bytes, that its
content (not its name) is of an allowed format, and its pixels. The result is upright 8-bit RGB by the rules of
docs/data.md; every failure is an `ImageError` with path and reason. `open_label_map` reads label maps, whose pixels
are class indices, with the same checks.
"""

import io
import math
import os
import stat
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from glocal.errors import GlocalError
from glocal.files import printable

LOADER_VERSION = 2  # raise it when the loader accepts or rejects other images: results are cached under it
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
LABEL_FORMATS = ("PNG",)  # lossless, with palettes
LABEL_MODES = ("1", "L", "P", "I;16", "I")
PILLOW_MAX_PIXELS = 178_956_970  # Pillow itself refuses more: twice its MAX_IMAGE_PIXELS
ORIENTATION = 0x0112  # EXIF tag
ROWS = 256  # converted at once: a whole image would need several times its memory
TILE_WIDTH, TILE_LENGTH = 322, 323  # TIFF tags
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ImageLimits:
    """Limits checked before decoding.

    Attributes:
        max_pixels: width x height; 178,956,970 at most.
        max_bytes: size of the file.
    """

    max_pixels: int = 64_000_000
    max_bytes: int = 256 * 2**20

    def __post_init__(self) -> None:
        if not 1 <= self.max_pixels <= PILLOW_MAX_PIXELS or self.max_bytes < 1:
            raise GlocalError(f"image limits: expected 1 to {PILLOW_MAX_PIXELS} pixels and at least 1 byte, got {self}")


class ImageError(GlocalError):
    """An image that cannot be loaded.

    Attributes:
        path: the image.
        reason: why, in words.
    """

    def __init__(self, path: str, reason: str):
        super().__init__(f"{printable(path)}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type["ImageError"], tuple[str, str]]:
        return ImageError, (self.path, self.reason)


def open_image(
    source: str | Path | bytes,
    *,
    limits: ImageLimits | None = None,
    follow_links: bool = True,
    name: str | None = None,
) -> Image.Image:
    """Decode an image to upright 8-bit RGB.

    Args:
        source: path of the image, or its bytes.
        limits: largest pixels and bytes, checked before decoding.
        follow_links: whether links to images are followed.
        name: of the image in errors; the path by default.

    Returns:
        An image of mode RGB, fully loaded.

    Raises:
        ImageError: if it is not an image, is damaged, or is too large.
    """
    return _open(source, limits or ImageLimits(), follow_links, name, FORMATS, _to_rgb)


def open_label_map(
    source: str | Path | bytes,
    *,
    limits: ImageLimits | None = None,
    follow_links: bool = True,
    name: str | None = None,
) -> np.ndarray:
    """Decode a label map: a PNG whose pixels are stored palette indices or grey values.

    Args:
        source: path of the image, or its bytes.
        limits: largest pixels and bytes, checked before decoding.
        follow_links: whether links to images are followed.
        name: of the image in errors; the path by default.

    Returns:
        (H, W) integers, upright: 0 and 1 of 1-bit PNGs, else 0..255 or, of 16-bit PNGs, 0..65535.

    Raises:
        ImageError: if it is not a one-channel PNG, is damaged, or is too large.
    """
    stored = _open(source, limits or ImageLimits(), follow_links, name, LABEL_FORMATS, _as_stored)
    labels = np.array(stored)
    return labels.astype(np.uint8) if stored.mode == "1" else labels  # numpy reads 1-bit images as bool


def _open(
    source: str | Path | bytes,
    limits: ImageLimits,
    follow_links: bool,
    name: str | None,
    formats: tuple[str, ...],
    convert: Callable[[Image.Image, str], Image.Image],
) -> Image.Image:
    """Check, decode, ``convert(image, name)`` while the file is open, turn upright."""
    if isinstance(source, bytes):
        name = name or "image"
        _check_size(name, len(source), limits)
        return _decode(io.BytesIO(source), name, limits, formats, convert)
    name = name or os.fspath(source)
    try:
        status = os.stat(source, follow_symlinks=follow_links)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(name, f"expected a regular file, got {_kind(status.st_mode)}")
        _check_size(name, status.st_size, limits)
        with open(source, "rb") as file:
            return _decode(file, name, limits, formats, convert)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(name, "no such file") from None
    except OSError as error:
        raise ImageError(name, f"unreadable ({error.strerror or error})") from None


def _check_size(name: str, size: int, limits: ImageLimits) -> None:
    if size == 0:
        raise ImageError(name, "empty file")
    if size > limits.max_bytes:
        raise ImageError(name, f"has {size / 2**20:.1f} MiB, the limit is {limits.max_bytes / 2**20:.1f} MiB")


def _decode(
    file: BinaryIO,
    name: str,
    limits: ImageLimits,
    formats: tuple[str, ...],
    convert: Callable[[Image.Image, str], Image.Image],
) -> Image.Image:
    try:
        with _PILLOW_WARNINGS:
            with Image.open(file, formats=formats) as image:
                _check_pixels(name, "", image.size, limits)
                if isinstance(image, TiffImageFile):  # a small image may have a huge tile, which is decoded whole
                    tile = image.tag_v2.get(TILE_WIDTH, 0), image.tag_v2.get(TILE_LENGTH, 0)
                    _check_pixels(name, "a tile of ", tile, limits)
                if image.format == "PNG":
                    image.verify()  # the checksums, which decoding skips
            file.seek(0)
            with Image.open(file, formats=formats) as image:
                image.load()
                orientation = _orientation(image)  # after loading, which already rotates TIFF
                converted = convert(image, name)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(
            name, f"has more than {PILLOW_MAX_PIXELS / 1e6:.1f} Mpx, the limit is {limits.max_pixels / 1e6:.1f} Mpx"
        ) from None
    except UnidentifiedImageError:
        kinds = "JPEG, PNG, WebP, BMP, TIFF or GIF" if formats == FORMATS else " or ".join(formats)
        raise ImageError(name, f"not a readable {kinds}") from None
    except MemoryError:
        raise ImageError(name, "too large for memory to decode") from None
    except Exception as error:  # decoders raise OSError, ValueError, SyntaxError, struct.error, EOFError and others
        detail = " ".join(printable(str(error)).split())[:200]
        word = "truncated" if "truncated" in detail.lower() else "cannot be decoded"
        raise ImageError(name, f"{word} ({type(error).__name__}: {detail})") from None
    return converted.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else converted


def _check_pixels(name: str, what: str, size: tuple[int, int], limits: ImageLimits) -> None:
    pixels = size[0] * size[1]
    if pixels > limits.max_pixels:
        raise ImageError(
            name,
            f"has {what}{size[0]} x {size[1]} = {pixels / 1e6:.1f} Mpx, the limit is {limits.max_pixels / 1e6:.1f} Mpx",
        )


class _PillowWarnings:
    """Silences Pillow's warnings about metadata, thread-safely (what it cannot decode, it raises).

    Concurrent ``warnings.catch_warnings`` would leave filters behind, so the first thread to enter sets them and the
    last one to leave restores the old ones.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.threads = 0

    def __enter__(self) -> None:
        with self.lock:
            if self.threads == 0:
                self.before = warnings.catch_warnings()
                self.before.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self.threads += 1

    def __exit__(self, *exception: object) -> None:
        with self.lock:
            self.threads -= 1
            if self.threads == 0:
                self.before.__exit__(None, None, None)


_PILLOW_WARNINGS = _PillowWarnings()


def _orientation(image: Image.Image) -> int:
    """EXIF orientation; 1 (upright) if there is none or the metadata is damaged."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:
        return 1


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Any mode -> RGB, by the table in docs/data.md."""
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_to_8_bit(np.asarray(image), image.info.get("transparency"), name)).convert("RGB")
    if image.has_transparency_data:
        return _over_white(image)
    return image.convert("RGB")


def _as_stored(image: Image.Image, name: str) -> Image.Image:
    """A label map, unchanged; raises ImageError for colour images."""
    if image.mode not in LABEL_MODES:
        raise ImageError(name, f"label map: expected a palette or a grey PNG, got one of mode {image.mode}")
    return image.copy()


def _over_white(image: Image.Image) -> Image.Image:
    rgb = Image.new("RGB", image.size)
    for top in range(0, image.height, ROWS):
        rows = image.crop((0, top, image.width, min(top + ROWS, image.height))).convert("RGBA")
        white = Image.new("RGBA", rows.size, (255, 255, 255, 255))
        rgb.paste(Image.alpha_composite(white, rows).convert("RGB"), (0, top))
    return rgb


def _to_8_bit(grey: np.ndarray, transparent: int | None, name: str) -> np.ndarray:
    """Grey of more than 8 bits -> uint8: integers are 0..65535; floats 0..1, or 0..255 where one is above 1.

    Args:
        grey: (H, W) integers or floats.
        transparent: the transparent value, if any; it becomes white.
        name: of the image, for errors.
    """
    low, high = grey.min().item(), grey.max().item()  # NaN if there is one
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageError(name, "float pixels: expected finite values, got NaN or infinity")
    white = 65535 if grey.dtype.kind in "iu" else 1 if high <= 1 else 255
    if low < 0 or high > white:
        raise ImageError(name, f"pixels: expected 0..{white}, got {low:g}..{high:g}")
    scaled = np.empty(grey.shape, np.uint8)
    for top in range(0, len(grey), ROWS):
        rows = grey[top : top + ROWS]
        scaled[top : top + ROWS] = np.rint(rows * np.float64(255) / white)
        if transparent is not None:
            scaled[top : top + ROWS][rows == transparent] = 255
    return scaled


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISLNK, "a link"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    )
    return next((name for test, name in kinds if test(mode)), "something else")
