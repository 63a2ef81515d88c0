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
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(999))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, content) for kind, content in chunks)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def claiming(kind: str, width: int, height: int) -> bytes:
    """A small file of a format whose header says that it is ``width`` x ``height``."""
    if kind == "PNG":
        return png_header(width, height)
    content = bytearray(
        encoded(Image.new("RGB", (8, 8), "red"), kind, **({"lossless": True} if kind == "WEBP" else {}))
    )
    little, big = struct.pack("<HH", width, height), struct.pack(">HH", height, width)
    if kind == "JPEG":
        at = content.index(b"\xff\xc0") + 5
        content[at : at + 4] = big
    elif kind == "GIF":
        at = content.index(b",\0\0\0\0\x08\0\x08\0") + 5  # the frame; the screen stands at 6
        content[6:10] = content[at : at + 4] = little
    elif kind == "BMP":
        content[18:26] = struct.pack("<ii", width, height)
    elif kind == "WEBP":
        at = content.index(b"VP8L") + 9
        kept = int.from_bytes(content[at : at + 4], "little") >> 28 << 28
        content[at : at + 4] = (kept | (height - 1) << 14 | width - 1).to_bytes(4, "little")
    else:
        assert kind == "TIFF"
        for tag, value in ((256, width), (257, height)):
            at = content.index(struct.pack("<HHI", tag, 4, 1)) + 8
            content[at : at + 4] = value.to_bytes(4, "little")
    return bytes(content)


def tiled_tiff(side: int) -> bytes:
    """A grey 16 x 16 TIFF in one deflated tile of ``side`` x ``side``."""
    tile = zlib.compress(bytes(side * side))
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 0, 325: len(tile)}
    tags[324] = 8 + 2 + 12 * len(tags) + 4  # where the tile begins
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + tile


def png_16_bit(values: list[int], *, channels: int = 1, transparent: list[int] | None = None) -> bytes:
    """A PNG of one row of 16-bit values: grey (1 channel), grey with alpha (2) or RGB (3); Pillow writes no such."""
    row = b"\0" + struct.pack(f">{len(values)}H", *values)
    header = struct.pack(">IIBBBBB", len(values) // channels, 1, 16, {1: 0, 2: 4, 3: 2}[channels], 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(row)), (b"IEND", b"")]
    if transparent is not None:
        chunks.insert(1, (b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, content) for kind, content in chunks)


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
