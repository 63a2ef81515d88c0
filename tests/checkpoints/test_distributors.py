"""Checkpoints of other distributors give their numbers: Hugging Face's ResNet and ViT, and the wrappers around any."""

import pytest
import torch

import glocal
from glocal.errors import GlocalError
from tests.parity import recipe
from tests.parity.test_parity import load, weights
from tests.randomized import calm, undrawn


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_hugging_face_resnet():
    transformers = pytest.importorskip("transformers")
    theirs = calm(transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=1000)))
    ours = undrawn(glocal.create_model, "glocal_resnet50").eval()
    ours.load_state_dict(glocal.convert_checkpoint("glocal_resnet50", theirs.state_dict()))
    x = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        expected = theirs(x).logits
        assert (ours(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


HUB = {  # names of the files on the hub, where transformers 5 has new ones
    "vit.layers.": "vit.encoder.layer.",
    ".attention.q_proj.": ".attention.attention.query.",
    ".attention.k_proj.": ".attention.attention.key.",
    ".attention.v_proj.": ".attention.attention.value.",
    ".attention.o_proj.": ".attention.output.dense.",
    ".mlp.fc1.": ".intermediate.dense.",
    ".mlp.fc2.": ".output.dense.",
}


@pytest.mark.parametrize("names", ["transformers 5", "hub"])
def test_hugging_face_vit(names):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=192, num_attention_heads=3, intermediate_size=768, num_labels=1000, layer_norm_eps=1e-6
    )
    theirs = calm(transformers.ViTForImageClassification(config))
    weights = theirs.state_dict()
    for new, old in HUB.items() if names == "hub" else ():
        weights = {name.replace(new, old): tensor for name, tensor in weights.items()}
    ours = undrawn(glocal.create_model, "glocal_vit_tiny_patch16_224").eval()
    ours.load_state_dict(glocal.convert_checkpoint("glocal_vit_tiny_patch16_224", weights))
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = theirs(x).logits
        assert (ours(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", glocal.list_models("*_micro"))
@pytest.mark.parametrize("wrap", ["state_dict", "model", "state_dict_ema"])
def test_wrappers_of_training_scripts(name, wrap):
    weights = calm(undrawn(glocal.create_model, name)).state_dict()
    wrapped = {wrap: {f"module.{key}": tensor for key, tensor in weights.items()}, "epoch": 3, "args": None}
    converted = glocal.convert_checkpoint(name, wrapped)
    assert all(torch.equal(converted[key], tensor) for key, tensor in weights.items())


def test_weights_without_a_known_place_say_what_to_do():
    with pytest.raises(GlocalError, match=r"glocal convert FILE --model cat_tiny --out cat_tiny\.safetensors"):
        glocal.create_model("cat_tiny", pretrained=True)


@pytest.mark.slow
def test_hugging_faces_cvt_is_another_function():
    """With the same weights its logits are a percent away; with the authors' GELU in its place they are equal."""
    transformers = pytest.importorskip("transformers")
    from timm.layers import QuickGELU

    torch.manual_seed(0)
    theirs = calm(transformers.CvtForImageClassification(transformers.CvtConfig(num_labels=1000))).double()
    ours = glocal.create_model("cvt_13").double().eval()
    ours.load_state_dict(glocal.convert_checkpoint("cvt_13", theirs.state_dict()))
    x = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        expected = ours(x)
        away = (theirs(x).logits - expected).abs().max() / expected.abs().max()
        assert away > 1e-3
        for module in theirs.modules():
            for name, child in module.named_children():
                if isinstance(child, torch.nn.GELU):
                    setattr(module, name, QuickGELU())
        torch.testing.assert_close(theirs(x).logits, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_mmpretrains_division_is_another_function():
    """Dividing by the scale, as its T2T-ViT does since 1.0.0rc7, played here by the inverse scale in the blocks."""
    manifest, expected = load("t2t_vit_t_14.mmpretrain")
    converted = glocal.convert_checkpoint("t2t_vit_t_14", weights(manifest))
    x = torch.from_numpy(recipe.image(manifest["inputs"][0])).double()
    logits = torch.from_numpy(expected["logits"]).double()
    away = {}
    for scale in (64**-0.5, 64**0.5):
        model = glocal.create_model("t2t_vit_t_14", qk_scale=scale).double().eval()
        model.load_state_dict(converted)
        with torch.no_grad():
            away[scale] = ((model(x) - logits).abs().max() / logits.abs().max()).item()
    assert away[64**-0.5] < 1e-6
    assert away[64**0.5] > 0.5
