"""The image gate: every command reads every image through `open_image`.

Images are untrusted. What is checked before a pixel is decoded: that the path is a regular file, its bytes, that its
content (not its name) is of an allowed format, and its pixels. What comes out is 8-bit RGB, upright, by the rules that
docs/data.md states; whatever goes wrong is one `ImageError` with path and reason.
"""

import io
import os
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from glocal.errors import GlocalError
from glocal.files import printable

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
ORIENTATION = 0x0112  # EXIF tag
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
    """What the gate refuses before decoding.

    Attributes:
        max_pixels: width x height.
        max_bytes: size of the file.
    """

    max_pixels: int = 64_000_000
    max_bytes: int = 256 * 2**20

    def __post_init__(self) -> None:
        if self.max_pixels < 1 or self.max_bytes < 1:
            raise GlocalError(f"image limits: expected at least 1 pixel and 1 byte, got {self}")


class ImageError(GlocalError):
    """An image that the gate refuses.

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
        limits: pixels and bytes above which it is refused, before decoding.
        follow_links: whether a link to an image is an image.
        name: what errors call it; the path by default.

    Returns:
        An image of mode RGB, with nothing left to load.

    Raises:
        ImageError: if it is no image, or one that cannot be decoded whole, or too big.
    """
    limits = limits or ImageLimits()
    if isinstance(source, bytes):
        name = name or "image"
        _check_size(name, len(source), limits)
        return _decode(io.BytesIO(source), name, limits)
    name = name or os.fspath(source)
    try:
        status = os.stat(source, follow_symlinks=follow_links)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(name, f"expected a regular file, got {_kind(status.st_mode)}")
        _check_size(name, status.st_size, limits)
        with open(source, "rb") as file:
            return _decode(file, name, limits)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(name, "no such file") from None
    except OSError as error:
        raise ImageError(name, f"cannot be read ({error.strerror or error})") from None


def _check_size(name: str, size: int, limits: ImageLimits) -> None:
    if size == 0:
        raise ImageError(name, "empty file")
    if size > limits.max_bytes:
        raise ImageError(name, f"has {size / 2**20:.1f} MiB, the limit is {limits.max_bytes / 2**20:.1f} MiB")


def _decode(file: BinaryIO, name: str, limits: ImageLimits) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of doubtful metadata; what it cannot decode, it raises
            with Image.open(file, formats=FORMATS) as image:
                width, height = image.size
                if width * height > limits.max_pixels:
                    raise ImageError(
                        name,
                        f"has {width} x {height} = {width * height / 1e6:.1f} Mpx, "
                        f"the limit is {limits.max_pixels / 1e6:.1f} Mpx",
                    )
                if image.format == "PNG":
                    image.verify()  # the checksums, which decoding leaves unread
            file.seek(0)
            with Image.open(file, formats=FORMATS) as image:
                orientation = _orientation(image)
                image.load()
                rgb = _to_rgb(image, name)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(name, f"has far more pixels than the limit of {limits.max_pixels / 1e6:.1f} Mpx") from None
    except UnidentifiedImageError:
        raise ImageError(name, "not a readable JPEG, PNG, WebP, BMP, TIFF or GIF") from None
    except MemoryError:
        raise ImageError(name, "needs more memory than there is to decode") from None
    except Exception as error:  # decoders raise OSError, ValueError, SyntaxError, struct.error, EOFError and others
        detail = " ".join(printable(str(error)).split())[:200]
        word = "truncated" if "truncated" in detail.lower() else "cannot be decoded"
        raise ImageError(name, f"{word} ({type(error).__name__}: {detail})") from None
    return rgb.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else rgb


def _orientation(image: Image.Image) -> int:
    """EXIF orientation; 1 (upright) where there is none or the metadata, not the picture, is damaged."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:
        return 1


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Any mode -> RGB, by the table in docs/data.md."""
    if image.mode.startswith("I"):  # 16-bit grey as 16 bits; 32-bit grey is taken as 16-bit values
        return _from_grey(np.asarray(image, dtype=np.int64), 0, 65535, 257, name)
    if image.mode == "F":
        pixels = np.asarray(image, dtype=np.float64)
        if not np.isfinite(pixels).all():
            raise ImageError(name, "float pixels: expected finite values, got NaN or infinity")
        return _from_grey(pixels, 0, 255, 1, name) if pixels.max() > 1 else _from_grey(pixels, 0, 1, 1 / 255, name)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _from_grey(pixels: np.ndarray, low: float, high: float, unit: float, name: str) -> Image.Image:
    """Grey values of low..high, ``unit`` of them to one step of the 8-bit scale."""
    if pixels.min() < low or pixels.max() > high:
        raise ImageError(name, f"pixels: expected {low}..{high}, got {pixels.min():g}..{pixels.max():g}")
    return Image.fromarray(np.rint(pixels / unit).astype(np.uint8)).convert("RGB")


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
