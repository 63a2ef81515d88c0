"""Maps recomputed beside the model give what the model gave; and what is read off them is known for made-up maps."""

import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitTransformerCfg
from torch import nn

from glocal.analysis import attention, attention_calls
from glocal.analysis.attention import bias_share
from glocal.errors import GlocalError
from tests.analysis.making import OURS, TIMM, images, model, unchanged

ATTENDING = [
    *(name for name in OURS if name != "resnet"),
    *(name for name in TIMM if name not in ("timm resnet", "timm convnext")),
    "torchvision",
    "transformers sdpa",
    "transformers eager",
]
EXPECTED = {  # attentions of each
    "botnet": 3, "vit": 5, "t2t_vit": 4, "cvt": 6, "cat": 9, "conformer": 6, "timm vit": 2, "timm swin": 4,
    "timm pvt": 4, "timm deit": 2, "timm beit": 2, "torchvision": 2, "transformers sdpa": 2, "transformers eager": 2,
}  # fmt: skip


@pytest.mark.parametrize("name", ATTENDING)
def test_the_maps_give_the_output_of_the_model(name):
    module = model(name)
    with unchanged(module):
        calls = attention_calls(module, images(3))
    assert len(calls) == EXPECTED[name]
    for call in calls:
        rows = call.weights.sum(-1)
        torch.testing.assert_close(rows, torch.ones_like(rows), atol=1e-5, rtol=0)
        assert call.weights.min() >= 0
        assert call.output.std() > 1e-3
        torch.testing.assert_close(call.recomputed, call.output, atol=1e-5, rtol=1e-5)


def test_a_wrong_scale_would_be_seen(monkeypatch):
    maps = sys.modules["glocal.analysis.attention_maps"]
    plain = maps._fused
    monkeypatch.setattr(maps, "_fused", lambda *args, scale=None, **kwargs: plain(*args, scale=0.1, **kwargs))
    call = attention_calls(model("vit"), images(2))[0]
    assert (call.recomputed - call.output).abs().max() > 1e-3


def test_relative_position_is_seen_where_there_is_one():
    assert all(point.bias_share is not None for point in attention(model("botnet"), images()).points)
    shares = [point.bias_share for point in attention(model("cat"), images()).points]
    assert [share is None for share in shares] == 3 * [False, True, False]
    assert all(point.bias_share is None for point in attention(model("vit"), images()).points)


def test_share_of_the_bias_by_hand():
    generator = torch.Generator().manual_seed(0)
    content, bias = (torch.randn(2, 3, 4, 5, generator=generator) for _ in range(2))
    content, bias = (
        content * 2,
        bias + torch.randn(2, 3, 4, 1, generator=generator) * 100,
    )  # a level of a row is nothing
    expected = []
    for head in range(3):
        both, of_bias = [], []
        for image in range(2):
            for query in range(4):
                logits = (content + bias)[image, head, query].double()
                part = bias[image, head, query].double()
                both.append(((logits - logits.mean()) ** 2).sum())
                of_bias.append(((logits - logits.mean()) * (part - part.mean())).sum())
        expected.append(float(sum(of_bias) / sum(both)))
    np.testing.assert_allclose(bias_share(content, bias), expected, rtol=1e-5)
    assert bias_share(torch.zeros_like(content), bias) == pytest.approx(np.ones(3))
    assert bias_share(content, torch.zeros(4, 5)) == pytest.approx(np.zeros(3))


def test_masked_keys_are_no_position():
    content = torch.randn(1, 1, 6, 6)
    mask = torch.zeros(6, 6).masked_fill(torch.ones(6, 6).triu(1).bool(), -math.inf)
    assert bias_share(content, mask) == pytest.approx([0.0])


class Looking(nn.Module):
    """One attention over the pixels of a 4x6 map of step 2, its logits given."""

    def __init__(self, logits: torch.Tensor, prefix: int = 0):
        super().__init__()
        self.logits, self.prefix = nn.Parameter(logits), prefix
        self.stem = nn.Conv2d(3, 4, 2, stride=2)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = torch.cat([x.new_zeros(len(x), self.prefix, 4), x], 1)[:, None]
        zero = torch.zeros_like(x)
        x = F.scaled_dot_product_attention(zero, zero, x, attn_mask=self.logits)
        return x[:, 0].mean(1)


def test_distance_and_entropy_of_known_maps():
    x = torch.randn(3, 3, 8, 12)
    itself = attention(Looking(torch.eye(24) * 1e4), x).points[0]
    assert itself.distance == pytest.approx([0.0], abs=1e-9)
    assert itself.entropy == pytest.approx([0.0], abs=1e-9)
    alike = attention(Looking(torch.zeros(24, 24)), x).points[0]
    places = [(2 * row + 1, 2 * column + 1) for row in range(4) for column in range(6)]
    mean = np.mean([math.dist(a, b) for a in places for b in places])
    assert alike.distance == pytest.approx([mean])
    assert alike.uniform_distance == pytest.approx(mean)
    assert alike.entropy == pytest.approx([math.log(24)])
    to_the_right = torch.full((24, 24), -1e4)
    for i in range(24):
        to_the_right[i, i + 1 if i % 6 < 5 else i] = 0
    assert attention(Looking(to_the_right), x).points[0].distance == pytest.approx([2 * 20 / 24])


def test_prefix_tokens_are_no_places():
    logits = torch.zeros(25, 25)
    logits[:, 0] = 5
    found = attention(Looking(logits, prefix=1), torch.randn(2, 3, 8, 12))
    assert found.points[0].distance == pytest.approx([found.points[0].uniform_distance])
    assert found.rollout.shape == (2, 4, 6)
    np.testing.assert_allclose(found.rollout.sum((1, 2)), 1)


def test_windows_and_channels_lie_where_they_should():
    found = attention(model("cat"), images())
    inside, between = found.points[0], found.points[1]
    assert (inside.windows, between.windows) == (16, 24)
    step = 2  # the first stage: pixels of the image from one to the next
    places = [(step * row, step * column) for row in range(4) for column in range(4)]
    mean = np.mean([math.dist(a, b) for a in places for b in places])
    assert inside.uniform_distance == pytest.approx(mean)
    assert between.uniform_distance == pytest.approx(4 * mean)  # from window to window
    swin = attention(model("timm swin"), images()).points[0]
    assert swin.uniform_distance == pytest.approx(mean)


@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("block", ["M", "PM"])  # one after the other, or side by side
def test_windows_of_tokens_far_apart_are_told_from_those_of_neighbours(block, channels_first):
    torch.manual_seed(0)
    sizes = MaxxVitTransformerCfg(dim_head=8, window_size=(4, 4), grid_size=(4, 4), use_nchw_attn=channels_first)
    config = MaxxVitCfg((16, 24), (1, 1), (block, block), stem_width=8, transformer_cfg=sizes)
    module = MaxxVit(config, img_size=32, num_classes=10).eval()
    points = attention(module, images()).points
    assert [point.windows for point in points] == [4, 4, 1, 1]  # inside windows and over a grid, in two stages
    step = 4  # the first stage: pixels of the image from one token to the next
    places = [(step * row, step * column) for row in range(4) for column in range(4)]
    mean = np.mean([math.dist(a, b) for a in places for b in places])
    assert [point.uniform_distance for point in points] == pytest.approx([mean, 2 * mean, 2 * mean, 2 * mean])
    shifted = model("timm swin")
    assert len({point.uniform_distance for point in attention(shifted, images()).points[:2]}) == 1


def test_rollout_is_the_product_of_the_maps():
    module, x = model("vit"), images(2)
    mixed = torch.eye(65, dtype=torch.float64)
    for call in attention_calls(module, x):
        mixed = (0.5 * call.weights.double().mean(1) + 0.5 * torch.eye(65)) @ mixed
    expected = mixed[:, 0, 1:] / mixed[:, 0, 1:].sum(1, keepdim=True)
    found = attention(module, x)
    assert len(found.rolled) == 5
    np.testing.assert_allclose(found.rollout.reshape(2, -1), expected.numpy(), rtol=1e-6)


def test_a_model_without_attention_is_refused():
    with pytest.raises(GlocalError, match="expected one with softmax attention"):
        attention(model("resnet"), images())


def test_an_error_inside_leaves_the_model_as_it_was():
    module = model("vit").train()
    with unchanged(module), pytest.raises(RuntimeError):
        attention_calls(module, torch.randn(2, 1, 32, 32))
