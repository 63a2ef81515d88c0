"""Peak memory against hand-computed steps."""

import pytest
import timm
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from glocal.bench import peak_inference_memory, peak_training_memory

MIB = 2**20


def test_a_step_of_one_wide_layer_by_hand():
    # batch 1: activations are a few KiB, so the peak is in AdamW's step: weight, gradient, two moments, and
    # sqrt(second moment) with its quotient by the bias correction
    model = nn.Sequential(nn.Flatten(), nn.Linear(1024, 512, bias=False))
    weight = 4 * 1024 * 512
    assert peak_training_memory(model, (1, 1, 32, 32)) * MIB == pytest.approx(6 * weight, rel=0.005)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_kept_activations_by_hand(depth):
    # a tanh keeps its output alone, so the convolution's is freed; the worst moment is the last tanh's backward pass:
    # the batch, all kept outputs, the gradient that comes in and the one that goes out
    model = nn.Sequential(nn.Conv2d(1, 1, 1), *(nn.Tanh() for _ in range(depth)), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    bytes_of_map = 4 * 64 * 128 * 128
    peak = peak_training_memory(model, (64, 1, 128, 128)) * MIB
    assert peak == pytest.approx((1 + depth + 2) * bytes_of_map, rel=0.005)


def test_moments_live_through_the_backward_pass():
    # weight and two moments; batch; log-softmax's kept output, the gradient that comes into its backward and its own
    model = nn.Sequential(nn.Flatten(), nn.Linear(1024, 512, bias=False))
    expected = 3 * (1024 * 512) + 2048 * 1024 + 3 * (2048 * 512)
    assert peak_training_memory(model, (2048, 1, 32, 32)) * MIB == pytest.approx(4 * expected, rel=0.005)


def test_memory_grows_linearly_with_the_batch_and_figures_repeat():
    model = timm.create_model("resnet10t", num_classes=3)
    peaks = [peak_training_memory(model, (n, 3, 32, 32)) for n in (8, 16, 24)]
    assert peaks[2] - peaks[1] == pytest.approx(peaks[1] - peaks[0], rel=1e-6)
    assert peak_training_memory(model, (8, 3, 32, 32)) == peaks[0]


def test_the_model_and_the_random_state_are_left_as_they_were():
    model = timm.create_model("resnet10t", num_classes=3, drop_rate=0.5).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    with torch.no_grad():
        peak_training_memory(model, (2, 3, 32, 32))
    assert torch.equal(state, torch.random.get_rng_state())
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_checkpointing_and_frozen_layers_save_memory():
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, patch_size=8, depth=4, num_classes=3)
    plain = peak_training_memory(model, (16, 3, 64, 64))
    model.set_grad_checkpointing()
    assert peak_training_memory(model, (16, 3, 64, 64)) < 0.8 * plain
    model.set_grad_checkpointing(False)
    model.requires_grad_(False).head.requires_grad_(True)
    assert peak_training_memory(model, (16, 3, 64, 64)) < 0.5 * plain


def test_another_loss():
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return self.body(x).mean((2, 3)), self.body(x).amax((2, 3))

    assert peak_training_memory(TwoHeads(), (2, 3, 8, 8), loss=lambda heads: sum(h.sum() for h in heads)) > 0


def test_inference_of_a_wide_layer_by_hand():
    # weight, batch, output
    model = nn.Sequential(nn.Flatten(), nn.Linear(1024, 512, bias=False))
    expected = 4 * (1024 * 512 + 2048 * 1024 + 2048 * 512)
    assert peak_inference_memory(model, (2048, 1, 32, 32)) * MIB == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_inference_keeps_no_activations(depth):
    # the batch, what the last tanh is given and what it gives, however many there are
    model = nn.Sequential(nn.Conv2d(1, 1, 1), *(nn.Tanh() for _ in range(depth)))
    bytes_of_map = 4 * 64 * 128 * 128
    assert peak_inference_memory(model, (64, 1, 128, 128)) * MIB == pytest.approx(3 * bytes_of_map, rel=1e-5)


def test_inference_sees_into_operators_that_are_made_of_others():
    class Attends(nn.Module):
        def forward(self, x):
            with sdpa_kernel(SDPBackend.MATH):
                return nn.functional.scaled_dot_product_attention(x, x, x)

    tokens, dim = 512, 8
    peak = peak_inference_memory(Attends(), (1, 1, tokens, dim)) * MIB
    assert peak >= 4 * tokens * tokens  # the scores


def test_inference_at_half_precision_casts_weights_and_halves_activations():
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Tanh(), nn.Tanh())
    bytes_of_map = 4 * 64 * 128 * 128
    peak = peak_inference_memory(model, (64, 1, 128, 128), precision="bf16") * MIB
    assert peak == pytest.approx((1 + 2 / 2) * bytes_of_map, rel=1e-4)  # the batch; the map before and after the tanh


def test_inference_repeats_and_leaves_the_model():
    model = timm.create_model("resnet10t", num_classes=3).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    peaks = [peak_inference_memory(model, (n, 3, 32, 32)) for n in (8, 8, 16)]
    assert peaks[0] == peaks[1] < peaks[2] < peak_training_memory(model, (16, 3, 32, 32))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_by_hand():
    model = nn.Sequential(nn.Flatten(), nn.Linear(1024, 1024, bias=False))
    weight = 4 * 1024 * 1024
    first = peak_training_memory(model, (1, 1, 32, 32), "cuda")
    assert 6 * weight <= first * MIB <= 6.5 * weight
    assert peak_training_memory(model, (1, 1, 32, 32), "cuda") == first
    inference = peak_inference_memory(model, (1, 1, 32, 32), "cuda")
    assert weight <= inference * MIB <= 1.5 * weight
    assert peak_inference_memory(model, (1, 1, 32, 32), "cuda") == inference
