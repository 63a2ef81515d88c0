"""The text in an exported file: what it says comes back, anything else is refused."""

import json
from dataclasses import replace

import pytest

from glocal.export.description import Description, InvalidFileError

PLAIN = Description(
    format="onnx",
    name="cvt_13",
    classes=("a", 'b"\n\u202e', "<&>"),
    image_size=(224, 288),
    crop_pct=0.875,
    interpolation="bilinear",
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.2, 0.2),
    dynamic=("batch", "size"),
    half=True,
)


def test_what_is_said_comes_back():
    assert Description.of(PLAIN.text()) == PLAIN
    assert PLAIN.text().isascii()
    assert not set(PLAIN.text()) & set("\n<>&") - set("<>&")  # formats escape the rest themselves


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", 2), ("version", None), ("format", "pickle"), ("format", ["onnx"]), ("name", ""),
        ("name", "x" * 201),
        ("classes", []), ("classes", ["a", "a"]), ("classes", ["a", ""]), ("classes", ["a", 1]), ("classes", "ab"),
        ("image_size", 224), ("image_size", [224]), ("image_size", [224, 0]), ("image_size", [224, 10**6]),
        ("image_size", [224, True]), ("crop_pct", 0), ("crop_pct", float("nan")), ("crop_pct", "1"),
        ("interpolation", "__class__"), ("interpolation", None), ("mean", [0.5]), ("mean", [0.5, 0.5, "x"]),
        ("std", [0, 0.2, 0.2]), ("std", [float("inf")] * 3), ("dynamic", ["size"]), ("dynamic", None), ("dynamic", {}),
        ("batch_size", 0), ("batch_size", 1.0), ("batch_size", True), ("half", 1), ("digest", "0" * 63),
        ("digest", "g" * 64), ("digest", None), ("more", 1),
    ],
)  # fmt: skip
def test_values_of_no_sense_are_refused(key, value):
    with pytest.raises(InvalidFileError):
        Description.of(json.dumps({**json.loads(PLAIN.text()), key: value}))


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", "{", "[" * 100_000, b"\xff\xfe", '{"version": 1}'])
def test_what_is_no_description_is_refused(text):
    with pytest.raises(InvalidFileError):
        Description.of(text)


def test_each_key_is_needed():
    whole = json.loads(PLAIN.text())
    for key in whole:
        with pytest.raises(InvalidFileError):
            Description.of(json.dumps({k: v for k, v in whole.items() if k != key}))


def test_the_digest_is_no_part_of_what_is_written_first():
    assert replace(PLAIN, digest="1" * 64).text() == PLAIN.text()
