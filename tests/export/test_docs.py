"""The serving code of docs/export.md says what glocal says; that all blocks run is in tests/docs."""

import re
from pathlib import Path

import pytest
import torch

from glocal.data import open_image
from glocal.export import load_exported
from glocal.export.verification import builtin_images, to_batch
from tests.export.conftest import CLASSES

BLOCKS = re.findall(
    r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs/export.md").read_text(encoding="utf-8"), re.DOTALL
)


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    for name in ("model.onnx", "model.xml", "model.bin"):
        (tmp_path / name).write_bytes((made.root / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("file", "block"), list(zip(("model.onnx", "model.xml"), BLOCKS, strict=False)))
def test_serving(file, block, place, capsys):
    loaded = load_exported(file)
    assert f'"{file}"' in block
    for image in builtin_images(8):
        image.resize((61, 47)).save("photo.jpg", quality=95)
        names: dict = {}
        exec(block, names)
        of = {key: getattr(loaded, key) for key in ("crop_pct", "interpolation", "mean", "std")}
        expected = loaded(to_batch([open_image("photo.jpg")], 1, (32, 32), **of))
        torch.testing.assert_close(torch.from_numpy(names["logits"]), expected, rtol=1e-4, atol=1e-4)
        assert capsys.readouterr().out == f"{CLASSES[int(expected.argmax())]}\n"
