"""The plain forms of benchmarks/baselines are the library's functions, to rounding: what is timed is the same maths."""

import re

import pytest
import timm
import torch
import torch.nn.functional as F
from benchmarks.baselines import BASELINES, cat, plain
from torch import nn

import glocal  # noqa: F401  (registers the models)

MICRO = tuple(name for name in BASELINES if name.endswith("_micro"))
FULL = tuple(name for name in BASELINES if not name.endswith("_micro"))
# What the logits cannot tell, whoever computes them.
WITHOUT_EFFECT = {
    # what shifts all keys alike shifts the logits of a query, of which softmax takes no notice (in stage 2 the class
    # token is not shifted by the convolution); the map's queries in the last block, as the head acts on the class token
    "cvt_micro": r"proj_k\.bias$|^stages\.[01].*conv_proj_k\.bn\.(bias|running_mean)$|blocks\.2\.attn\.conv_proj_q",
    # what adds the same to all channels of a pixel, where nothing but LayerNorm over the channels follows
    "cat_micro": r"^stages\.2.*cpsa\.attn\.(qkv|proj)\.bias$",
}
SIDES = dict.fromkeys(FULL, 224) | dict.fromkeys(MICRO, 32)


def image(side: int, batch: int = 2) -> torch.Tensor:
    """Large shapes with grain on them, of about unit variance."""
    generator = torch.Generator().manual_seed(1)
    shapes = torch.randn(batch, 3, 8, 8, generator=generator, dtype=torch.float64)
    grain = torch.randn(batch, 3, side, side, generator=generator, dtype=torch.float64)
    return F.interpolate(shapes, size=(side, side), mode="bicubic") + 0.3 * grain


def drawn(name: str, *, side: int | None = None, seed: int = 0, **kwargs) -> tuple[nn.Module, torch.Tensor]:
    """The library's model in float64 with nothing at its initial value, and images for it.

    Queries and keys are large enough that softmaxes are far from uniform; the statistics of BatchNorm are near those
    of its input, so that activations keep their size through fifty layers.
    """
    side = side or SIDES[name]
    images = image(side)
    model = timm.create_model(name, img_size=side, **kwargs).double()
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: torch.Tensor, scale: float) -> torch.Tensor:
        return tensor.normal_(0, scale, generator=generator)

    for key, tensor in model.state_dict().items():
        owner, _, kind = key.rpartition(".")
        if not tensor.is_floating_point() or kind in ("w", "running_mean", "running_var"):
            continue  # random features stay orthogonal
        if any(part in key for part in ("pos_embed", "cls_token", "position.")):
            normal(tensor, 1.0 if "table" in key else 0.5)
        elif tensor.ndim > 1:
            normal(tensor, tensor[0].numel() ** -0.5)
            if owner.endswith((".qkv", ".proj_q", ".proj_k")):
                tensor[: len(tensor) * 2 // 3 if owner.endswith(".qkv") else None] *= 2.5
            elif owner.endswith(".kqv"):
                tensor[: len(tensor) * 2 // 3] *= 0.5  # exp(-|k|^2 / 2) stays far above the Performer's 1e-8
        elif kind == "weight":
            tensor.uniform_(0.5, 1.5, generator=generator)
        else:
            normal(tensor, 0.2)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    model.train()
    with torch.no_grad():
        model(images)
    for norm in norms:
        norm.momentum = 0.1
        deviation = norm.running_var.sqrt()
        norm.running_mean += 0.2 * deviation * normal(torch.empty_like(deviation), 1.0)
        norm.running_var *= torch.empty_like(deviation).uniform_(0.7, 1.4, generator=generator)
    return model.eval(), images


def error(measured: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over largest value."""
    return ((measured - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name", [*MICRO, *(pytest.param(name, marks=pytest.mark.slow) for name in FULL)])
def test_same_logits(name):
    model, images = drawn(name)
    baseline = plain(name, model)
    with torch.no_grad():
        assert error(baseline(images), model(images)) < 1e-9


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("botnet50", 96),  # the stem of full size and the attention that strides, which no micro form has
        ("t2t_vit_t_14", 64),  # tokens by a Transformer, likewise
        ("cat_micro", 64),
        pytest.param("botnet50", 256, marks=pytest.mark.slow),
        pytest.param("cvt_13", 320, marks=pytest.mark.slow),
        pytest.param("cat_small", 448, marks=pytest.mark.slow),
        pytest.param("conformer_small_patch16", 256, marks=pytest.mark.slow),
        pytest.param("t2t_vit_t_14", 288, marks=pytest.mark.slow),
    ],
)
def test_same_logits_at_another_size(name, side):
    model, images = drawn(name, side=side)
    baseline = plain(name, model, image_size=side)
    with torch.no_grad():
        assert error(baseline(images), model(images)) < 1e-9


def gradients(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    F.cross_entropy(model(images), torch.arange(len(images))).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("name", "side"),
    [
        *((name, 32) for name in MICRO),
        pytest.param("t2t_vit_t_14", 64, marks=pytest.mark.slow),
        pytest.param("botnet50", 96, marks=pytest.mark.slow),
    ],
)
def test_same_gradients(name, side):
    model, images = drawn(name, side=side)
    expected, measured = gradients(model, images), gradients(plain(name, model, image_size=side), images)
    assert measured.keys() == expected.keys()
    largest = max(gradient.abs().max() for gradient in expected.values())
    for key, gradient in expected.items():
        own = gradient.abs().max()
        if re.search(WITHOUT_EFFECT.get(name, "$^"), key):
            assert max(own, measured[key].abs().max()) < 1e-12 * largest, key
        else:
            assert own > 1e-6 * largest, f"{key} hardly reaches the logits"
            assert (measured[key] - gradient).abs().max() < 1e-8 * own, key


@pytest.mark.parametrize("name", [name for name in MICRO if name not in ("vit_micro", "cat_micro")])
def test_every_statistic_and_table_tells(name):
    """A mistake in any buffer would show: parameters have their gradients for that."""
    model, images = drawn(name)
    baseline, images = plain(name, model), images[:1]
    with torch.no_grad():
        expected = model(images)
        for key, buffer in baseline.named_buffers():
            if not buffer.is_floating_point() or re.search(WITHOUT_EFFECT.get(name, "$^"), key):
                continue
            right = buffer.clone()
            buffer.mul_(1.01)
            assert error(baseline(images), expected) > 1e-6, key
            buffer.copy_(right)
        assert error(baseline(images), expected) < 1e-9


def test_attention_is_sharp():
    """The weights of the randomised models are far from uniform, and far from one-hot."""
    model, _ = drawn("vit_micro")
    block = plain("vit_micro", model).blocks[2]
    seen = []
    block.attn.qkv.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        block(torch.randn(2, 65, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    q, k, _ = seen[0].unflatten(2, (3, 3, 16)).permute(2, 0, 3, 1, 4)
    highest = (q @ k.transpose(2, 3) / 4).softmax(dim=-1).amax(dim=-1)
    assert 5 / 65 < highest.median() < 0.99


def test_weights_are_copies_in_the_precision_and_mode_of_the_model():
    model, _ = drawn("cvt_micro")
    baseline = plain("cvt_micro", model.float().train())
    assert baseline.training
    assert baseline.head.weight.dtype == torch.float32
    assert baseline.head.weight.data_ptr() != model.head.weight.data_ptr()
    with pytest.raises(RuntimeError, match="size mismatch"):
        plain("vit_micro", drawn("vit_micro", side=64)[0])


def test_cat_computes_its_blocks_twice_in_training_unless_told_not_to(monkeypatch):
    model, images = drawn("cat_micro")
    calls = []
    forward = cat.CrossPatchAttention.forward
    monkeypatch.setattr(cat.CrossPatchAttention, "forward", lambda self, x: calls.append(self) or forward(self, x))
    counts, grads = [], []
    for checkpoint in (True, False):
        calls.clear()
        grads.append(gradients(plain("cat_micro", model, checkpoint=checkpoint), images))
        counts.append(len(calls))
    assert counts == [6, 3]
    assert all(torch.equal(grads[0][key], grads[1][key]) for key in grads[0])
    calls.clear()
    with torch.no_grad():
        plain("cat_micro", model)(images)
    assert len(calls) == 3


@pytest.mark.parametrize("name", MICRO)
def test_the_plain_forms_use_no_fused_attention(name, monkeypatch):
    def fused(*args, **kwargs):
        raise AssertionError("a plain form called scaled_dot_product_attention")

    model, images = drawn(name)
    monkeypatch.setattr(F, "scaled_dot_product_attention", fused)
    plain(name, model)(images)
