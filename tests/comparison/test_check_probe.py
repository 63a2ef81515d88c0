"""A model that cannot be probed is refused before anything is computed."""

import pytest
import timm
import torch
from torch import nn

import glocal  # noqa: F401 - registers its models
from glocal.comparison.probe import check_probe
from glocal.errors import GlocalError
from glocal.models.creation import zero_heads


def create(name="resnet_micro", **keywords):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=3, **keywords)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet_micro", 32),
        ("conformer_micro", 32),  # the mean of two heads
        ("deit_tiny_distilled_patch16_224", 224),
        ("resnetv2_50", 64),  # its head is a convolution
        ("caformer_s18", 32),
        ("crossvit_9_240", 240),
    ],
)
@pytest.mark.parametrize("zero", [False, True])
def test_models_that_can_be_probed_come_back_as_they_were(name, size, zero):
    model = create(name).train()
    if zero:
        zero_heads(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    check_probe(model, name, size)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    ("head", "got"),
    [(nn.Sequential(nn.Linear(8, 3)), "Sequential"), (nn.Linear(8, 3, bias=False), "one without a bias")],
)
def test_heads_that_cannot_be_set_are_refused_by_name(head, got):
    model = create()
    model.fc = head
    message = f"^a model: probe: expected a model with a linear classifier and its bias, got {got}; use --mode finetune"
    with pytest.raises(GlocalError, match=message):
        check_probe(model, "a model", 32)


@pytest.mark.parametrize("after", [lambda logits: logits / 2, torch.tanh, lambda logits: logits.softmax(1)])
def test_a_model_that_changes_its_logits_is_refused(after):
    model = create()
    model.register_forward_hook(lambda module, args, logits: after(logits))
    with pytest.raises(GlocalError, match="a model is more than its features and a linear classifier; use --mode"):
        check_probe(model, "a model", 32)


def test_a_head_that_is_not_used_is_refused():
    model = create()
    model.forward = model.forward_features
    with pytest.raises(GlocalError, match="a model is more than its features"):
        check_probe(model, "a model", 32)


def test_weights_that_overflow_are_not_the_fault_of_the_head():
    model = create()
    with torch.no_grad():
        next(model.parameters()).fill_(torch.inf)
    check_probe(model, "resnet_micro", 32)
