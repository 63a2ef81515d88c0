"""BoTNet: published counts, the authors' block by hand, and every keyword of the ablations."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import glocal
from glocal.bench import count_macs
from glocal.models.botnet import BottleneckTransformer
from tests.layers.test_attention import mhsa_by_loops
from tests.randomized import calm, undrawn, wild


def meta(name: str, **kwargs) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, **kwargs)


def weights_of_products(model: nn.Module) -> int:
    """Weights of convolutions and linear layers, without BatchNorm, biases and position tables."""
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))


def test_botnet50_has_the_published_parameters():
    assert round(sum(p.numel() for p in meta("botnet50").parameters()) / 1e6, 1) == 20.9
    assert round(weights_of_products(meta("botnet50")) / 1e6, 1) == 20.8


@pytest.mark.parametrize(
    ("name", "size", "millions", "gmacs"),
    [
        ("botnet_s1_59", 224, 33.5, 7.3),
        ("botnet_s1_110", 224, 54.7, 10.9),
        ("botnet_s1_77", 320, 53.9, 23.3),
        ("botnet_s1_128", 384, 75.1, 45.8),
    ],
)
def test_s1_forms_have_the_published_counts(name, size, millions, gmacs):
    """The paper's script counts a gate in attending blocks too, which the text (§4.8.4) says have none."""
    model = meta(name, img_size=size)
    gates_not_there = sum(isinstance(m, BottleneckTransformer) for m in model.modules()) * 2 * 2048 * (2048 // 16)
    assert (weights_of_products(model) + gates_not_there) / 1e6 == pytest.approx(millions, abs=0.1)
    assert not [n for n, _ in model.layer4.named_parameters() if ".se." in n]
    assert [n for n, _ in model.layer3.named_parameters() if ".se." in n]
    assert count_macs(model, size) / 1e9 == pytest.approx(gmacs, rel=0.01)


def test_last_stage_of_the_s1_forms_keeps_its_stride():
    assert [info["reduction"] for info in meta("botnet50").feature_info] == [4, 8, 16, 32]
    assert [info["reduction"] for info in meta("botnet_s1_50").feature_info] == [4, 8, 16, 16]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shortcut_act", [True, False])
def test_block_is_the_authors_block(stride, shortcut_act):
    """1x1, BN, ReLU, MHSA, average pooling, BN, ReLU, 1x1, BN; projected shortcut with BN (and ReLU); sum, ReLU."""
    block = wild(BottleneckTransformer(6, 4, stride=stride, size=(3, 4), num_heads=2, shortcut_act=shortcut_act))
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64)

    def norm(y: torch.Tensor, bn: nn.BatchNorm2d) -> torch.Tensor:
        scale = bn.weight / (bn.running_var + 1e-5).sqrt()
        return (y - bn.running_mean[:, None, None]) * scale[:, None, None] + bn.bias[:, None, None]

    y = norm(torch.einsum("oi,bihw->bohw", block.conv1.weight[:, :, 0, 0], x), block.bn1).relu()
    y = mhsa_by_loops(block.conv2, y, "relative")
    if stride == 2:
        y = F.avg_pool2d(F.pad(y, (0, 0, 0, 1), mode="replicate"), 2)  # three rows: the last is averaged alone
    y = norm(y, block.bn2).relu()
    y = norm(torch.einsum("oi,bihw->bohw", block.conv3.weight[:, :, 0, 0], y), block.bn3)
    shortcut = norm(F.conv2d(x, block.downsample[0].weight, stride=stride), block.downsample[1])
    if shortcut_act:
        shortcut = shortcut.relu()
    torch.testing.assert_close(block(x), (shortcut + y).relu(), rtol=0, atol=1e-10)


def test_keywords_reach_the_blocks():
    model = meta("botnet50", attention_stages=(3, 4), num_heads=8, position="absolute")
    attending = [isinstance(block, BottleneckTransformer) for block in (*model.layer2, *model.layer3, *model.layer4)]
    assert attending == [False] * 4 + [True] * 9
    assert model.layer3[0].conv2.num_heads == 8
    assert model.layer3[0].conv2.position.abs_height.shape == (28, 32)  # the stage's input, before its stride
    assert model.layer3[1].conv2.position.abs_height.shape == (14, 32)
    assert meta("botnet50", img_size=(256, 128)).layer4[1].conv2.position.rel_width.shape == (7, 128)
    assert not [n for n, _ in meta("botnet50", position="none").named_parameters() if "position" in n]


def test_no_attention_is_resnet():
    plain = calm(undrawn(glocal.create_model, "glocal_resnet50", depths=(1, 1, 1, 1)))
    model = glocal.create_model("botnet50", depths=(1, 1, 1, 1), attention_stages=()).eval()
    model.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(x), plain(x))


def test_position_tables_are_not_decayed():
    decayed = meta("botnet50").no_weight_decay()
    assert len(decayed) == 6
    assert all(name.endswith(("rel_height", "rel_width")) for name in decayed)


def test_a_wrong_stage_is_named():
    with pytest.raises(ValueError, match=r"attention_stages: expected stages from 1 to 4, got \(5,\)"):
        glocal.create_model("botnet50", attention_stages=(5,))
