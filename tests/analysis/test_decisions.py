"""Ablation, class activation, similarity, position and robustness, on cases whose answer is known."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from glocal.analysis import cam, features, locality, position, robustness, similarity, to_json
from glocal.analysis.position import Probe, padded
from glocal.analysis.robustness import band_noise, occlude, phase_and_amplitude, shuffle
from glocal.analysis.similarity import hsic
from glocal.errors import GlocalError
from tests.analysis.making import images, model, unchanged


class TwoBranches(nn.Module):
    """Adds a branch that does nothing, one that is the same for all images, and one that decides."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.nothing = nn.Conv2d(4, 4, 3, padding=1)
        self.constant = nn.Conv2d(4, 4, 3, padding=1)
        self.decides = nn.Conv2d(4, 4, 1, bias=False)
        self.head = nn.Linear(4, 2, bias=False)
        nn.init.zeros_(self.nothing.weight)
        nn.init.zeros_(self.nothing.bias)
        nn.init.zeros_(self.constant.weight)
        with torch.no_grad():
            self.constant.bias.copy_(torch.tensor([3.0, -3.0, 0.0, 0.0]))
            self.decides.weight.copy_(4 * torch.eye(4)[..., None, None])

    def forward(self, x):
        x = self.stem(x)
        x += self.nothing(x)
        x = x + self.constant(x)
        x = self.decides(x) + x
        return self.head(x.mean((2, 3)))


def test_ablation_takes_away_what_a_branch_says():
    torch.manual_seed(0)
    module, x = TwoBranches(), torch.randn(16, 3, 6, 6) + torch.randn(16, 3, 1, 1)
    labels = module(x).argmax(1)
    with unchanged(module):
        by_mean = locality(module, x, labels)
        by_zero = locality(module, x, labels, way="zero")
    nothing, constant, decides = by_mean.ablations
    assert (nothing.kind, constant.kind, decides.kind) == ("convolution", "convolution", "mlp")
    assert nothing.logit_change == pytest.approx(0, abs=1e-6)
    assert constant.logit_change == pytest.approx(0, abs=1e-6)  # it is the same for all images
    assert decides.logit_change == pytest.approx(0.8, abs=1e-5)  # 4 parts of 5
    assert by_zero.ablations[1].logit_change > 0.1
    whole, without = module(x), module.head((module.stem(x) + module.constant.bias.view(4, 1, 1)).mean((2, 3)))
    expected = (without - whole).norm() / (whole - whole.mean(0)).norm()
    assert by_zero.ablations[2].logit_change == pytest.approx(expected.item(), rel=1e-5)
    assert by_zero.accuracy == by_zero.ablations[0].accuracy == by_zero.ablations[0].kept == 1
    assert [group.name for group in by_mean.groups] == ["all convolution", "all mlp"]
    added = by_mean.contributions
    assert added[0].ratio == added[0].share == 0
    assert added[2].ratio == pytest.approx(4)
    assert added[2].share == pytest.approx(0.8)


def test_modules_are_ablated_by_name():
    torch.manual_seed(0)
    module, x = TwoBranches(), torch.randn(8, 3, 6, 6)
    found = locality(module, x, modules=("nothing", "st*")).ablations[-2:]
    assert [(one.name, one.kind) for one in found] == [("stem", "module"), ("nothing", "module")]
    assert found[0].logit_change == pytest.approx(1, abs=1e-5)  # all images are alike then
    with pytest.raises(GlocalError, match="modules: expected names of modules, got 'stm'; nearest: stem"):
        locality(module, x, modules=("stm",))


def test_kinds_alone_are_found_in_fewer_passes():
    torch.manual_seed(0)
    module, x, passes = TwoBranches(), torch.randn(8, 3, 6, 6), []
    every = locality(module, x)
    module.register_forward_hook(lambda *_: passes.append(1))
    found = locality(module, x, each=False)
    assert to_json(found.groups) == to_json(every.groups)
    assert found.ablations == ()
    assert len(passes) == 2 + 2  # the walk, the whole, and two kinds


def test_grad_cam_is_cam_where_a_linear_layer_follows_pooling():
    """With global average pooling and a linear head, Grad-CAM is Zhou et al.'s map up to its scale."""
    torch.manual_seed(0)
    stem, head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 4)
    module = nn.Sequential(stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    x = torch.randn(5, 3, 8, 10)
    found = cam(module, x, batch_size=2)
    classes = module(x).argmax(1)
    expected = torch.einsum("bc,bchw->bhw", head.weight[classes], stem(x)).relu()
    expected = expected / expected.amax((1, 2), keepdim=True)
    np.testing.assert_allclose(found.maps, expected.detach().numpy(), atol=1e-5)
    assert found.classes.tolist() == classes.tolist()
    np.testing.assert_allclose(found.probabilities, module(x).softmax(1).amax(1).detach().numpy(), rtol=1e-5)
    other = cam(module, x, torch.zeros(5, dtype=torch.long))
    assert other.classes.tolist() == [0] * 5


def test_a_head_on_the_class_token_is_explained_before_the_last_attention():
    found = cam(model("vit"), images())
    assert found.layer == "blocks.3 mlp"
    assert found.maps.shape == (8, 8, 8)
    assert found.maps.max() == 1


def test_unbiased_hsic_by_its_formula():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    n, k, l = 6, (first @ first.T).numpy(), (second @ second.T).numpy()  # noqa: E741
    np.fill_diagonal(k, 0)
    np.fill_diagonal(l, 0)
    one = np.ones(n)
    expected = (
        np.trace(k @ l) + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * one @ k @ l @ one
    ) / (n * (n - 3))
    assert hsic(first @ first.T, second @ second.T) == pytest.approx(expected)


def test_similarity_does_not_see_rotations_and_sees_chance():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    turned = nn.Sequential(nn.Conv2d(3, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    rotation, _ = torch.linalg.qr(torch.randn(8, 8))
    with torch.no_grad():
        turned[0].weight.copy_(3 * (rotation @ plain[0].weight.flatten(1)).view(8, 3, 1, 1))
    x = torch.randn(48, 3, 6, 6)
    assert similarity(plain, x, turned, batch_size=12).cka[0, 0] == pytest.approx(1, abs=1e-6)
    unrelated = similarity(plain, x, turned, other_images=torch.randn(48, 3, 6, 6), batch_size=12)
    assert abs(unrelated.cka[0, 0]) < 0.25
    own = similarity(model("conformer"), images(), batch_size=4)
    np.testing.assert_allclose(own.cka, own.cka.T)
    np.testing.assert_allclose(own.cka.diagonal(), 1)
    with pytest.raises(GlocalError, match="expected at least 4, got 3"):
        similarity(plain, x[:3])


def test_the_probe_reads_what_is_there():
    generator = torch.Generator().manual_seed(0)
    row, column = torch.meshgrid(torch.linspace(-1, 1, 6), torch.linspace(-1, 1, 9), indexing="ij")
    exact, half, none = Probe(3), Probe(2), Probe(4)
    for start in range(0, 16, 4):
        noise = torch.randn(4, 4, 6, 9, generator=generator)
        exact.add(torch.stack([row + 2 * column, column, noise[0, 0]])[None].expand(4, -1, -1, -1), start)
        half.add(torch.stack([row, row**2])[None].expand(4, -1, -1, -1), start)
        none.add(noise, start)
    assert exact.r2() == pytest.approx(1, abs=1e-3)
    assert half.r2() == pytest.approx(0.5, abs=1e-3)
    assert none.r2() == pytest.approx(0, abs=0.02)


def test_zero_padding_tells_where_and_wrapping_does_not():
    torch.manual_seed(0)
    parts = [part for i in range(4) for part in (nn.Conv2d(3 if i == 0 else 16, 16, 3, padding=1), nn.ReLU())]
    module = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = torch.randn(24, 3, 12, 12)
    with unchanged(module):
        last = position(module, x).points[-1]
    assert last.r2["zeros"] > 0.2
    assert abs(last.r2["circular"]) < 0.05
    with pytest.raises(GlocalError, match="padding: expected one of zeros, reflect, circular"):
        position(module, x, paddings=("mirror",))
    with pytest.raises(GlocalError, match="at least 8, got 3"):
        position(module, x[:3])


def test_padding_is_what_it_was_after_an_error():
    module = model("resnet")
    with unchanged(module), pytest.raises(RuntimeError), padded(module, "circular"):
        module(torch.randn(1, 1, 32, 32))
    with padded(module, "circular"):
        assert module.conv1.padding_mode == "circular"
    assert module.conv1.padding_mode == "zeros"


def test_disturbances_are_what_they_say():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, 16, 24, generator=generator) * 2 + 1
    for band in ((0.0, 1 / 3), (2 / 3, 1.0)):
        noise = band_noise(x, 0.5, band=band, generator=generator) - x
        np.testing.assert_allclose(noise.square().mean((1, 2, 3)).sqrt() / x.flatten(1).std(1), 0.5, rtol=1e-4)
        rows, columns = (2 * torch.fft.fftfreq(n).abs() for n in (16, 24))
        frequency = torch.maximum(rows[:, None], columns)
        amplitude = torch.fft.fft2(noise).abs().amax((0, 1))
        inside = (frequency >= band[0]) & (frequency <= band[1])
        assert amplitude[~inside].max() < 1e-2 < amplitude[inside].min()
    hidden = occlude(x, 0.25, generator=generator)
    assert (hidden != x).float().mean() == pytest.approx(0.25)
    moved = shuffle(x, 4, generator=generator)
    assert not torch.equal(moved, x)
    torch.testing.assert_close(moved.flatten(2).sort().values, x.flatten(2).sort().values)
    torch.testing.assert_close(phase_and_amplitude(x, x), x, atol=1e-4, rtol=1e-4)
    joined = torch.fft.fft2(phase_and_amplitude(x[:3], x[3:]))
    torch.testing.assert_close(joined.abs(), torch.fft.fft2(x[3:]).abs(), atol=1e-2, rtol=1e-3)


class Mean(nn.Module):
    """Answers by the mean colour: no disturbance of places can matter, and texture decides."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3))

    def forward(self, x):
        return x.abs().mean((2, 3)) @ self.weight


def test_a_model_without_places_does_not_mind_shuffling():
    x = torch.rand(30, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.1
    labels = torch.arange(30) % 3
    x[torch.arange(30), labels] += 1
    found = robustness(Mean(), x, labels)
    curves = {curve.name: curve for curve in found.curves}
    assert found.clean == 1
    assert curves["shuffled patches"].score == (1, 1, 1)
    assert curves["shuffled patches"].levels == (2, 4, 8)
    assert (found.shape, found.texture) == (0, 1)  # the level is an amplitude
    assert found.conflicts > 10
    unlabelled = robustness(Mean(), x)
    assert (unlabelled.labelled, unlabelled.clean) == (False, 1)
    with pytest.raises(GlocalError, match="at least 8x8"):
        robustness(Mean(), x[..., :4])


def test_feature_maps_of_both_streams():
    found = features(model("conformer"), images(2), channels=5)
    assert found.first.name == "conv1"
    assert {point.layout for point in found.points} == {"map", "tokens"}
    assert {len(point.channels) for point in found.points} == {4, 5}  # some points have four
    assert math.isfinite(sum(point.strength.sum() for point in found.points))
