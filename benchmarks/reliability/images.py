"""20,000 mutated images through the scan that every command begins with, against an oracle that decodes them itself.

python benchmarks/reliability/images.py [--count 20000]
"""

import argparse
import os
import sys
import tempfile
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.reliability.record import record
from tests.data.making import encoded, picture
from tests.data.test_images import array, mutate

from glocal.data import ImageError, check_folder, open_image
from glocal.data.images import FORMATS

SEED = 1


def originals() -> list[bytes]:
    """An image of each format, grey of 16 bits, a palette, alpha and CMYK."""
    rgb = picture(1, (48, 40))
    return [
        *(encoded(picture(i, (48, 40)), kind) for i, kind in enumerate(FORMATS)),
        encoded(array(list(range(0, 60000, 300)), np.uint16), "TIFF"),
        encoded(rgb.convert("P"), "PNG"),
        encoded(rgb.convert("RGBA"), "PNG"),
        encoded(rgb.convert("CMYK"), "JPEG"),
        encoded(rgb, "JPEG", progressive=True),
        encoded(rgb, "TIFF", compression="tiff_lzw"),
    ]


def oracle(content: bytes, path: Path) -> bool:
    """Whether Pillow, asked plainly, decodes every pixel of the first frame, every checksum of a PNG being right."""
    try:
        with Image.open(path) as image:
            if image.format not in FORMATS or image.width * image.height > 64_000_000:
                return False
            if image.format == "PNG" and not checksums_hold(content):
                return False
            pixels = np.asarray(image)  # decodes it
            if image.mode.startswith("I"):
                return bool(pixels.min() >= 0 and pixels.max() <= 65535)
            if image.mode == "F":
                return bool(np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 255)
            image.convert("RGB")
            return True
    except Exception:
        return False


def checksums_hold(content: bytes) -> bool:
    """CRC-32 of each chunk of a PNG before its end mark, which holds nothing, read without Pillow."""
    at = 8
    while True:
        length, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        if kind == b"IEND":
            return True
        end = at + 8 + length
        if end + 4 > len(content) or zlib.crc32(content[at + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
            return False
        at = end + 4


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20_000)
    count = parser.parse_args().count
    start = time.perf_counter()
    warnings.simplefilter("ignore")
    rng, sources = np.random.default_rng(SEED), originals()
    with tempfile.TemporaryDirectory() as place:
        root, slowest, refused = Path(place) / "data", 0.0, set()
        os.environ["GLOCAL_CACHE"] = str(Path(place) / "cache")
        for name in ("even", "odd"):
            (root / name).mkdir(parents=True)
        expected = set()
        for i in range(count):
            content = mutate(sources[i % len(sources)], rng)
            path = root / ("even", "odd")[i % 2] / f"{i:05d}.jpg"
            path.write_bytes(content)
            if not oracle(content, path):
                expected.add(str(path.relative_to(root)))
            began = time.perf_counter()
            try:
                open_image(path)
            except ImageError:
                refused.add(str(path.relative_to(root)))
            slowest = max(slowest, time.perf_counter() - began)
        listed = {bad.path for bad in check_folder(root, progress=False).skipped}
    differ = sorted(listed ^ expected)
    for path in differ[:20]:
        print(path, "listed" if path in listed else "not listed")
    record(
        "images",
        what=f"{count:,} mutated images of 6 formats: crashes; longest time per image; images listed by the scan "
        "compared with those rejected by an independent full decode",
        asked="0 crashes, none over 1 s, equal sets",
        found=f"0 crashes, longest {slowest:.2f} s, {len(listed):,} listed, {len(differ)} differ",
        holds=slowest <= 1 and not differ and listed == refused,
        seed=SEED,
        seconds=time.perf_counter() - start,
    )


if __name__ == "__main__":
    main()
