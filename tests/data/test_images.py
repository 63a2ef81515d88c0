"""The image loader: exact pixels for every mode, and a reason for every rejected file."""

import os
import pickle
import socket
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from glocal.data import ImageError, ImageLimits, open_image
from tests.data.making import DAMAGES, claiming, encoded, flipped, picture, png_16_bit, png_header, tiled_tiff

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")


def pixels(source) -> list:
    image = open_image(source)
    assert image.mode == "RGB"
    return np.asarray(image).reshape(-1, 3).tolist()


@pytest.mark.parametrize("kind", FORMATS)
def test_every_allowed_format_is_decoded(kind, tmp_path):
    path = tmp_path / "named.txt"  # the content counts, not the name
    path.write_bytes(encoded(picture(), kind))
    image = open_image(path)
    assert image.size == (24, 16)
    difference = np.abs(np.asarray(image, dtype=int) - np.asarray(picture(), dtype=int)).mean()
    assert difference < (0.5 if kind in ("PNG", "BMP", "TIFF") else 12)


def array(values, dtype) -> Image.Image:
    return Image.fromarray(np.array([values], dtype=dtype))


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (array([0, 128, 255], np.uint8), "PNG", [[0] * 3, [128] * 3, [255] * 3]),
        (array([0, 257, 32896, 65535], np.uint16), "PNG", [[0] * 3, [1] * 3, [128] * 3, [255] * 3]),
        (array([0, 257, 32896, 65535], np.uint16), "TIFF", [[0] * 3, [1] * 3, [128] * 3, [255] * 3]),
        (array([0, 257, 65535], np.int32), "TIFF", [[0] * 3, [1] * 3, [255] * 3]),
        (array([0.0, 0.5, 1.0], np.float32), "TIFF", [[0] * 3, [128] * 3, [255] * 3]),
        (array([0.0, 100.4, 255.0], np.float32), "TIFF", [[0] * 3, [100] * 3, [255] * 3]),
        (array([[255, 0, 0, 255], [255, 0, 0, 0]], np.uint8), "PNG", [[255, 0, 0], [255, 255, 255]]),
        (array([[0, 255], [0, 0], [100, 255]], np.uint8), "PNG", [[0] * 3, [255] * 3, [100] * 3]),  # LA
        (array([0, 255], np.uint8).convert("1"), "PNG", [[0] * 3, [255] * 3]),
        (Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF", [[255, 0, 0]]),
        (Image.new("CMYK", (1, 1), (0, 0, 0, 255)), "TIFF", [[0, 0, 0]]),
    ],
)
def test_modes_become_rgb_by_the_documented_rule(image, kind, expected):
    assert pixels(encoded(image, kind)) == expected


def test_half_transparent_is_composited_over_white():
    (value,) = pixels(encoded(array([[0, 0, 0, 128]], np.uint8), "PNG"))
    assert value[0] == value[1] == value[2]
    assert abs(value[0] - 127) <= 1


def test_a_transparent_image_of_many_rows_is_composited_throughout():
    rgba = np.random.default_rng(0).integers(0, 256, (600, 50, 4), dtype=np.uint8)
    alpha = rgba[:, :, 3:] / 255
    expected = alpha * rgba[:, :, :3] + (1 - alpha) * 255
    assert np.abs(np.asarray(open_image(encoded(Image.fromarray(rgba), "PNG"))) - expected).max() <= 1


def test_palette_with_a_transparent_colour_shows_white_there():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    assert pixels(encoded(image, "PNG", transparency=0)) == [[255, 255, 255], [0, 255, 0]]
    assert pixels(encoded(image, "PNG")) == [[255, 0, 0], [0, 255, 0]]


def test_a_transparent_16_bit_grey_shows_white():
    assert pixels(png_16_bit([0, 25700, 65535, 257], transparent=[0])) == [[255] * 3, [100] * 3, [255] * 3, [1] * 3]


def test_of_16_bit_rgb_and_grey_with_alpha_the_high_byte_counts():
    values = [65535, 0, 25700, 0, 51455, 255]
    assert pixels(png_16_bit(values, channels=3)) == [[255, 0, 100], [0, 200, 0]]
    assert pixels(png_16_bit(values, channels=3, transparent=values[:3])) == [[255, 255, 255], [0, 200, 0]]
    assert pixels(png_16_bit([0, 0, 25700, 65535], channels=2)) == [[255] * 3, [100] * 3]


def test_cmyk_follows_its_formula():
    inks = np.random.default_rng(0).integers(0, 256, (20, 20, 4), dtype=np.uint8)
    image = Image.merge("CMYK", [Image.fromarray(inks[:, :, i]) for i in range(4)])
    expected = (255.0 - inks[:, :, :3]) * (255.0 - inks[:, :, 3:]) / 255
    assert np.abs(np.asarray(open_image(encoded(image, "TIFF"))) - expected).max() <= 0.5


def test_a_16_bit_image_of_many_rows_is_scaled_throughout():
    image = Image.fromarray(np.arange(600 * 100, dtype=np.uint16).reshape(600, 100))
    expected = np.rint(np.arange(600 * 100) / 257).reshape(600, 100)
    assert np.array_equal(np.asarray(open_image(encoded(image, "PNG")))[:, :, 1], expected)


def test_cmyk_jpeg_is_not_inverted():
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(np.array(pixels(encoded(red, "JPEG", quality=95))) - [255, 0, 0]).max() < 12


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixels(content)[0] == [255, 0, 0]


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {"lossless": True}), ("JPEG", {})],
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_once(orientation, kind, options):
    upright = Image.new("RGB", (32, 16), "white")
    upright.paste("red", (0, 0, 8, 8))  # a red corner, above on the left
    stored = upright
    for step in {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }[orientation]:
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = open_image(encoded(stored, kind, exif=exif, **options))
    assert image.size == upright.size
    difference = np.abs(np.asarray(image, dtype=int) - np.asarray(upright, dtype=int))
    assert difference.max() < (90 if kind == "JPEG" else 1)


def test_many_threads_leave_the_filters_of_warnings_as_they_were():
    palette = Image.new("P", (64, 64))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    content = encoded(palette, "PNG", transparency=b"\0\x80")  # Pillow warns of it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        with ThreadPoolExecutor(8) as pool:
            images = list(pool.map(lambda _: open_image(content), range(400)))
        assert warnings.filters == before
    assert all(image.mode == "RGB" for image in images)


def test_damaged_exif_does_not_lose_the_picture():
    content = encoded(picture(), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff broken")
    assert np.array_equal(np.asarray(open_image(content)), np.asarray(picture()))


@pytest.mark.parametrize(("kind", "make"), DAMAGES.items(), ids=DAMAGES)
def test_damage_is_named(kind, make, tmp_path):
    expected = {
        "empty": "empty file",
        "text": "not a readable JPEG, PNG, WebP, BMP, TIFF or GIF",
        "truncated jpeg": "truncated",
        "truncated png": "truncated",
        "eps named jpg": "not a readable JPEG, PNG, WebP, BMP, TIFF or GIF",
        "bomb": "has 13000 x 13000 = 169.0 Mpx, the limit is 64.0 Mpx",
        "nan tiff": "float pixels: expected finite values, got NaN or infinity",
        "bad checksum": "cannot be decoded",
    }[kind]
    path = tmp_path / "image.jpg"
    path.write_bytes(make())
    with pytest.raises(ImageError) as error:
        open_image(path)
    assert error.value.path == str(path)
    assert error.value.reason.startswith(expected)
    assert str(error.value) == f"{path}: {error.value.reason}"


def test_a_png_whose_checksum_alone_is_wrong_is_refused():
    content = encoded(picture(), "PNG")
    checksum = content.index(b"IEND") - 5  # last byte of the pixels' checksum
    with pytest.raises(ImageError, match=r"cannot be decoded .*checksum"):
        open_image(flipped(content, checksum))


def test_values_outside_the_rule_are_refused_not_clipped():
    with pytest.raises(ImageError, match=r"expected 0\.\.65535, got 0\.\.100000"):
        open_image(encoded(array([0, 100_000], np.int32), "TIFF"))
    with pytest.raises(ImageError, match=r"expected 0\.\.255, got -1\.\.300"):
        open_image(encoded(array([-1.0, 300.0], np.float32), "TIFF"))


def test_limits_are_parameters(tmp_path):
    content = encoded(picture(), "PNG")
    with pytest.raises(ImageError, match=r"24 x 16 = 0\.0 Mpx"):
        open_image(content, limits=ImageLimits(max_pixels=383))
    assert open_image(content, limits=ImageLimits(max_pixels=384)).size == (24, 16)
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageError, match="MiB, the limit is"):
        open_image(tmp_path / "a.png", limits=ImageLimits(max_bytes=len(content) - 1))
    with pytest.raises(ValueError, match="image limits"):
        ImageLimits(max_pixels=0)
    with pytest.raises(ValueError, match="expected 1 to 178956970 pixels"):  # Pillow's own limit
        ImageLimits(max_pixels=200_000_000)


MEASURE = """
import resource, sys
from glocal.data import ImageError, open_image
try:
    open_image(sys.argv[2])
except ImageError:
    pass
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    open_image(sys.argv[1])
    print("decoded")
except ImageError as error:
    print(error.reason)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


BOMBS = {kind: lambda kind=kind: claiming(kind, 13_000, 13_000) for kind in FORMATS}
BOMBS["TIFF tile"] = lambda: tiled_tiff(13_000)


@pytest.mark.parametrize(("kind", "make"), BOMBS.items(), ids=BOMBS)
def test_a_bomb_is_refused_before_it_is_decoded(kind, make, tmp_path):
    (tmp_path / "bomb").write_bytes(make())
    (tmp_path / "text").write_text("makes Pillow load all that it has")
    assert (tmp_path / "bomb").stat().st_size < 300_000
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "bomb"), str(tmp_path / "text")]
    reason, growth = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "13000 x 13000 = 169.0 Mpx, the limit is 64.0 Mpx" in reason
    assert float(growth) < 64, "MiB"


def test_a_bomb_beyond_pillows_own_limit_is_refused_too():
    with pytest.raises(ImageError, match=r"has more than 179\.0 Mpx, the limit is 64\.0 Mpx"):
        open_image(png_header(30_000, 30_000))


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    (tmp_path / "link").symlink_to("a.png")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket"))
    for name, reason in (("pipe", "a pipe"), ("", "a folder"), ("socket", "a socket")):
        with pytest.raises(ImageError, match=f"expected a regular file, got {reason}"):
            open_image(tmp_path / name)
    with pytest.raises(ImageError, match="expected a regular file, got a link"):
        open_image(tmp_path / "link", follow_links=False)
    with pytest.raises(ImageError, match="no such file"):
        open_image(tmp_path / "link")
    with pytest.raises(ImageError, match="a device"):
        open_image("/dev/zero")
    server.close()


def test_names_are_escaped_in_messages():
    with pytest.raises(ImageError) as error:
        open_image(b"", name="a\x1b[31m\u202egnp.exe")
    assert str(error.value) == "a\\x1b[31m\\u202egnp.exe: empty file"


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    kind = rng.integers(4)
    at = int(rng.integers(len(content)))
    if kind == 0:
        return flipped(content, at)
    if kind == 1:
        return content[:at]
    if kind == 2:
        other = bytes(rng.integers(0, 256, int(rng.integers(1, 40)), dtype=np.uint8))
        return content[:at] + other + content[at:]
    changed = bytearray(content)
    for spot in rng.integers(0, len(content), 20):
        changed[spot] = rng.integers(256)
    return bytes(changed)


def fuzz(count: int) -> tuple[int, int]:
    originals = [encoded(picture(i, (48, 40)), kind) for i, kind in enumerate(FORMATS)]
    originals.append(encoded(array(list(range(0, 60000, 300)), np.uint16), "TIFF"))
    rng = np.random.default_rng(0)
    decoded = refused = 0
    for i in range(count):
        content = mutate(originals[i % len(originals)], rng)
        start = time.perf_counter()
        try:
            assert open_image(content, name=f"mutant {i}").mode == "RGB"
            decoded += 1
        except ImageError as error:
            assert error.path == f"mutant {i}"
            assert error.reason
            refused += 1
        assert time.perf_counter() - start < 5
    return decoded, refused


def test_500_mutants_are_decoded_or_refused():
    decoded, refused = fuzz(500)
    assert decoded + refused == 500
    assert min(decoded, refused) > 50


@pytest.mark.slow
def test_20000_mutants_are_decoded_or_refused():
    assert sum(fuzz(20_000)) == 20_000


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_decoded_or_refused(content):
    try:
        assert open_image(content).mode == "RGB"
    except ImageError as error:
        assert error.reason


def test_errors_cross_processes():
    error = pickle.loads(pickle.dumps(ImageError("a", "b")))
    assert (error.path, error.reason, str(error)) == ("a", "b", "a: b")


def test_reading_leaves_no_file_open(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(picture(), "PNG"))
    image = open_image(path)
    path.unlink()
    assert np.array_equal(np.asarray(image), np.asarray(picture()))
