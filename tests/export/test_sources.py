"""What is exported: a run's model, or one by its name with the weights that are asked for."""

import pytest
import timm
import torch
from safetensors.torch import save_file

import glocal
from glocal.errors import GlocalError
from glocal.export import from_run, named
from glocal.models.io import ModelConfig, load_model, save_model
from tests.inference.making import write_model
from tests.randomized import calm, undrawn


def test_a_run(tmp_path):
    write_model(tmp_path / "run", name="vit_micro", size=64)
    for path in (tmp_path / "run", tmp_path / "run/model.safetensors"):
        source, saved = from_run(path), load_model(path)
        assert (source.name, source.classes, source.image_size) == ("vit_micro", saved.classes, 64)
        assert (source.mean, source.std, source.crop_pct) == (saved.mean, saved.std, saved.crop_pct)
        assert source.interpolation == "bicubic"
        save_model(
            source.model,
            tmp_path / "again",
            ModelConfig.of_classifier(source.model, classes=source.classes, image_size=64, keywords=source.model_args),
        )
        assert load_model(tmp_path / "again").digest == saved.digest


def test_a_name_has_random_weights_and_its_own_size():
    source = named("vit_micro")
    assert (source.name, source.weights, source.image_size, source.classes) == ("vit_micro", "random weights", 32, None)
    assert source.model.training is False
    bigger = named("vit_micro", image_size=64)
    assert bigger.image_size == 64
    assert bigger.model(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
    assert named("test_resnet").name == "test_resnet"
    assert named("test_vit", image_size=(64, 96)).model(torch.zeros(1, 3, 64, 96)).shape == (1, 1000)


@pytest.mark.parametrize("name", ["vit_micro", "conformer_micro", "test_vit", "test_resnet"])
def test_a_checkpoint_brings_its_classes(name, tmp_path):
    model = calm(undrawn(timm.create_model, name, num_classes=7))
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pth")
    side = model.pretrained_cfg["input_size"][-1]
    x = torch.randn(1, 3, side, side)
    for file in ("w.safetensors", "w.pth"):
        source = named(name, tmp_path / file)
        with torch.no_grad():
            torch.testing.assert_close(source.model(x), model(x))
        assert source.weights == f"weights of {tmp_path / file}"
        assert source.interpolation == model.pretrained_cfg["interpolation"]
    bigger = named(name, tmp_path / "w.safetensors", image_size=2 * side)
    assert bigger.model(torch.zeros(1, 3, 2 * side, 2 * side)).shape == (1, 7)


def test_timms_own_weights_know_their_classes(monkeypatch):
    from glocal.export import sources

    real = glocal.create_model
    monkeypatch.setattr(sources, "create_model", lambda name, pretrained, **kwargs: real(name, **kwargs))
    source = named("test_resnet", "pretrained")
    assert source.classes[:2] == ("n01440764", "n01443537")
    assert len(source.classes) == 1000


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("cvt_14", None, "unknown model 'cvt_14'; nearest: cvt_"),
        ("botnet50", "pretrained", "botnet50: no public location of pretrained weights is known"),
        ("vit_micro", "missing.pth", "no file .*missing.pth"),
        ("vit_micro", "other.safetensors", "other.safetensors: expected a classifier's weights, got no head"),
        ("test_vit", "other.safetensors", "expected a classifier's weights, got no head.weight"),
        ("resnet_micro", "near.safetensors", "the checkpoint is not one of resnet_micro: .* entries differ"),
        ("test_resnet", "near.safetensors", "test_resnet cannot be created"),
    ],
)
def test_mistakes_are_told(name, weights, message, tmp_path):
    save_file({"conv.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    save_file({"fc.weight": torch.zeros(3, 5), "fc.bias": torch.zeros(3)}, tmp_path / "near.safetensors")
    given = tmp_path / weights if weights and weights != "pretrained" else weights
    with pytest.raises(GlocalError, match=message):
        named(name, given)


def test_a_pickle_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            import os

            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    for name in ("vit_micro", "test_vit"):
        with pytest.raises(GlocalError, match=r"evil.pth"):
            named(name, tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()
