"""Pictures and folders for the tests, good and bad."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int = 0, size: tuple[int, int] = (24, 16)) -> Image.Image:
    """Smooth noise: every format has something to compress and something to get wrong."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A tiny PNG that claims to be large: one scanline's worth of zeros."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


def folder(root: Path, classes: dict[str, int], *, size: tuple[int, int] = (24, 16)) -> Path:
    """``root/CLASS/000.png ...``, each class of its own colour, each image different."""
    for label, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            image = picture(1000 * label + i, size)
            tint = Image.new("RGB", size, [(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30)][label % 4])
            Image.blend(image, tint, 0.6).save(root / name / f"{i:03d}.png")
    return root


DAMAGES = {
    "empty": lambda: b"",
    "text": lambda: b"not an image at all\n" * 20,
    "truncated jpeg": lambda: encoded(picture(1, (64, 64)), "JPEG")[:-300],
    "truncated png": lambda: encoded(picture(2, (64, 64)), "PNG")[:200],
    "eps named jpg": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
    "bomb": lambda: png_header(13_000, 13_000),
    "nan tiff": lambda: encoded(Image.fromarray(np.full((4, 4), np.nan, dtype=np.float32)), "TIFF"),
    "bad checksum": lambda: flipped(encoded(picture(3, (64, 64)), "PNG"), 90),
}


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


def damage(root: Path, classes: list[str], count: int = 20) -> list[str]:
    """Put ``count`` files of the eight kinds of damage among the classes; returns their paths under root."""
    paths = []
    for i in range(count):
        kind = list(DAMAGES)[i % len(DAMAGES)]
        path = root / classes[i % len(classes)] / f"bad-{i:02d}.jpg"
        path.write_bytes(DAMAGES[kind]())
        paths.append(os.path.relpath(path, root))
    return sorted(paths)
