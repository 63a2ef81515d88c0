import math

import pytest
import timm
import torch
from safetensors.torch import save_file

import glocal  # noqa: F401 - registers its models
from glocal.errors import GlocalError
from glocal.models.creation import create, heads
from glocal.training.trainable import training_loss

MODELS = {
    "resnet_micro": 32, "botnet_micro": 32, "vit_micro": 32, "t2t_vit_micro": 32, "cvt_micro": 32, "cat_micro": 32,
    "conformer_micro": 32,  # two heads, whose losses are averaged
    "deit_tiny_distilled_patch16_224": 224,  # two heads, whose logits are averaged
    "resnetv2_50": 64,  # the head is a 1 x 1 convolution
    "mobilenetv3_small_050": 64,
    "convnext_atto": 64,
    "caformer_s18": 32,  # get_classifier returns the last two layers
    "crossvit_9_240": 240,  # two heads, whose logits are averaged
    "repvit_m0_9": 64,  # a head behind a BatchNorm
    "volo_d1_224": 224,  # a second head whose logits are added
}  # fmt: skip


@pytest.mark.parametrize(("name", "size"), MODELS.items())
def test_from_weights_every_model_starts_at_ln_k(name, size, tmp_path):
    torch.manual_seed(5)
    source = timm.create_model(name, num_classes=11)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    model = create(name, num_classes=7, image_size=size, seed=0, weights=tmp_path / "weights.safetensors")
    images, labels = torch.randn(4, 3, size, size), torch.tensor([0, 1, 2, 6])
    loss = training_loss(model.train(), images, labels, torch.nn.functional.cross_entropy)
    assert loss.item() == pytest.approx(math.log(7), abs=1e-6)
    loss.backward()
    learning = [head.weight.grad for head in heads(model) if head.weight.grad is not None]
    assert all(gradient.abs().max() > 0 for gradient in learning)  # and it learns
    assert learning
    before = {name: p for name, p in source.named_parameters() if p.shape == dict(model.named_parameters())[name].shape}
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters() if name in before)


def test_weights_that_are_not_finite_are_named(tmp_path):
    state = timm.create_model("vit_micro", num_classes=7).state_dict()
    state["norm.bias"][3] = float("nan")
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(GlocalError, match=r"expected finite weights, got NaN or infinity in norm\.bias"):
        create("vit_micro", num_classes=7, image_size=32, seed=0, weights=tmp_path / "weights.safetensors")


def test_from_scratch_the_head_is_the_models_own():
    model = create("resnet_micro", num_classes=7, image_size=32, seed=0)
    assert model.fc.weight.abs().max() > 0
