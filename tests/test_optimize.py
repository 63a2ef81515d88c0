"""glocal.optimize: the same function for inference, in every family, at any size; the original untouched."""

import copy

import pytest
import timm
import torch
import torchvision
from timm.layers import QuickGELU as TimmQuickGELU
from torch import nn

import glocal
from glocal.errors import GlocalError
from glocal.layers import Attend
from tests.contract.test_timm import same, short
from tests.randomized import calm, undrawn

FULL = ("glocal_resnet50", "botnet50", "botnet_s1_59", "glocal_vit_small_patch16_224", "t2t_vit_14", "t2t_vit_t_14",
        "t2t_vit_dense", "t2t_vit_14_se", "t2t_vit_16_ghost", "cvt_13", "cat_small",
        "conformer_small_patch16")  # fmt: skip
MICROS = glocal.list_models("*_micro")


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def check(model: nn.Module, *sizes: tuple[int, ...]) -> nn.Module:
    """Equal outputs, and the original as it was: its weights, mode and outputs."""
    mode = model.training
    before = copy.deepcopy(model.state_dict())
    optimized = glocal.optimize(model)
    assert model.training == mode
    assert type(optimized) is type(model)
    assert not any(module.training for module in optimized.modules())
    assert not optimized.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    own = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert not own & {tensor.data_ptr() for tensor in optimized.state_dict().values()}
    model.eval()
    with torch.no_grad():
        for size in sizes:
            for x in (images(*size), images(*size)[:1]):
                expected = model(x)
                assert abs(optimized(x) - expected).max() <= 1e-5 * expected.abs().max()
    return optimized


@pytest.mark.parametrize("name", MICROS)
def test_micro_forms_are_equal_at_any_size(name):
    optimized = check(
        calm(undrawn(timm.create_model, name, num_classes=5)), (2, 3, 32, 32), (2, 3, 45, 71), (1, 3, 64, 32)
    )
    assert norms(optimized) == 0


@pytest.mark.parametrize("name", FULL)
def test_short_forms_are_equal(name):
    assert norms(check(calm(undrawn(short, name, num_classes=5)), (2, 3, 64, 64), (1, 3, 77, 50))) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_full_sizes_are_equal(name):
    check(calm(undrawn(timm.create_model, name, num_classes=5)), (2, 3, 224, 224), (1, 3, 257, 193))


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("botnet_micro", {"position": "absolute"}),
        ("botnet_micro", {"position": "none", "last_stride": 2}),
        ("cvt_micro", {"projection": "pool"}),
        ("cvt_micro", {"projection": "linear"}),
        ("cvt_micro", {"class_token": False, "global_pool": "avg"}),
        ("vit_micro", {"global_pool": "avg"}),
        ("vit_micro", {"qkv_bias": False}),
        ("t2t_vit_micro", {"tokens": "transformer"}),
        ("t2t_vit_micro", {"tokens": "convolution"}),
        ("cat_micro", {"cross": "shifted"}),
        ("conformer_micro", {"pooling": "max", "upsampling": "bilinear"}),
        ("conformer_micro", {"coupling": False, "num_med_block": 1}),
        ("conformer_micro", {"branches": "conv"}),
        ("conformer_micro", {"branches": "trans"}),
    ],
)
def test_every_form_of_a_family_is_equal(name, kwargs):
    check(calm(undrawn(timm.create_model, name, num_classes=5, **kwargs)), (2, 3, 64, 64), (1, 3, 37, 50))


def test_models_in_training_keep_their_statistics():
    model = calm(undrawn(timm.create_model, "resnet_micro")).train()
    assert norms(check(model, (2, 3, 32, 32))) == 0


@pytest.mark.parametrize("name", MICROS)
def test_features_and_other_poolings_are_equal_too(name):
    model = calm(undrawn(timm.create_model, name, num_classes=5))
    optimized, x = glocal.optimize(model), images(2, 3, 64, 48)
    close = {"rtol": 1e-4, "atol": 1e-5}
    with torch.no_grad():
        torch.testing.assert_close(optimized.forward_features(x), model.forward_features(x), **close)
        maps = optimized.forward_intermediates(x, intermediates_only=True)
        torch.testing.assert_close(maps, model.forward_intermediates(x, intermediates_only=True), **close)
        logits = optimized.forward_head(optimized.forward_features(x))
        torch.testing.assert_close(optimized(x), logits, **close)
        for each in (model, optimized):
            torch.manual_seed(0)
            each.reset_classifier(3, "avg")
        torch.testing.assert_close(optimized(x), model(x), **close)
        extractor = calm(undrawn(timm.create_model, name, features_only=True))
        torch.testing.assert_close(glocal.optimize(extractor)(x), extractor(x), **close)


@pytest.mark.parametrize("name", ["vit_micro", "t2t_vit_micro", "cvt_micro"])
def test_the_last_block_reads_the_class_token_alone(name):
    optimized = glocal.optimize(timm.create_model(name))
    queries = []
    for module in optimized.modules():
        if isinstance(module, Attend):
            module.register_forward_pre_hook(lambda _, args: queries.append(args[0].shape[2]))
    optimized(images(1, 3, 32, 32))
    assert queries[-1] == 1
    assert min(queries[:-1]) > 1
    optimized.forward_features(images(1, 3, 32, 32))
    assert queries[-1] > 1


@pytest.mark.parametrize("name", ["resnet50", "mobilenetv3_small_100", "regnety_002", "convnext_atto"])
def test_models_of_timm_are_equal(name):
    model = calm(undrawn(timm.create_model, name, num_classes=5))
    optimized = check(model, (2, 3, 64, 64), (1, 3, 77, 50))
    assert norms(optimized) == (0 if name == "resnet50" else norms(model))


def test_models_of_torchvision_are_equal():
    for made in (torchvision.models.resnet18(num_classes=5), torchvision.models.mobilenet_v2(num_classes=5)):
        assert norms(check(calm(made), (2, 3, 64, 64))) == 0


def test_attention_put_into_another_library_s_model():
    model = glocal.insert_attention(timm.create_model("resnet18", num_classes=5), img_size=64)
    assert norms(check(calm(model), (2, 3, 64, 64), (1, 3, 77, 50))) == 0


class Odd(nn.Module):
    """BatchNorms that no convolution owns: behind two uses, a shared layer, a linear layer, without statistics."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        shared = nn.Conv2d(3, 3, 1)
        self.first, self.second = nn.Sequential(shared, nn.BatchNorm2d(3)), nn.Sequential(shared, nn.ReLU())
        self.flat = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.blind = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False))
        self.plain = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False))
        self.gelu = timm.layers.Mlp(4, 8, act_layer=TimmQuickGELU)

    def forward(self, x):
        y = self.conv(x)
        y = y + self.norm(y)
        y = self.plain(self.blind(self.second(self.first(y))))
        return self.gelu(self.flat(y.mean(1)))


def test_what_has_no_proof_stays():
    model = calm(Odd())
    optimized = check(model, (2, 3, 4, 4))
    kept = [name for name, module in optimized.named_modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert kept == ["norm", "first.1", "flat.1", "blind.1"]
    assert isinstance(optimized.gelu.act, nn.SiLU)


def test_untraceable_models_are_returned_equal():
    class Asking(nn.Sequential):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else super().forward(-x)

    model = Asking(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    with pytest.warns(UserWarning, match=r"torch.fx cannot trace Asking \(symbolically traced"):
        check(calm(model), (2, 3, 4, 4))
    check(Asking(nn.Conv2d(3, 3, 1)), (2, 3, 4, 4))  # nothing to fold


@pytest.mark.parametrize(
    "name",  # the slow ones are quick in their plain form: tests/contract/test_timm.py
    [name if name == "conformer_micro" else pytest.param(name, marks=pytest.mark.slow) for name in MICROS],
)
def test_compiles_and_exports(name):
    optimized = glocal.optimize(calm(undrawn(timm.create_model, name, num_classes=5)))
    dim = torch.export.Dim
    least = 2 if name == "cat_micro" else 1
    sizes = {0: dim("b", min=1, max=64), 2: 32 * dim("h", min=least, max=32), 3: 32 * dim("w", min=least, max=32)}
    program = torch.export.export(optimized, (images(2, 3, 64, 96),), dynamic_shapes=(sizes,)).module()
    with torch.no_grad():
        x = images(3, 3, 96, 64)
        torch.testing.assert_close(program(x), optimized(x))
        compiled = torch.compile(optimized, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), optimized(x))


def test_pickles_and_saves(tmp_path):
    model = calm(undrawn(timm.create_model, "vit_micro", num_classes=5))
    optimized = glocal.optimize(model)
    torch.save(optimized, tmp_path / "optimized.pt")
    loaded = torch.load(tmp_path / "optimized.pt", weights_only=False)
    x = images(1, 3, 32, 32)
    assert torch.equal(loaded(x), optimized(x))
    assert not any(parameter.requires_grad for parameter in optimized.parameters())
    timm.create_model("vit_micro", num_classes=5).load_state_dict(model.state_dict())
    assert same(glocal.optimize(optimized)(x), optimized(x)), "once more changes nothing"


def test_half_precision():
    model = calm(undrawn(timm.create_model, "conformer_micro", num_classes=5)).to(torch.bfloat16)
    optimized, x = glocal.optimize(model), images(2, 3, 32, 32).to(torch.bfloat16)
    assert {p.dtype for p in optimized.parameters()} == {torch.bfloat16}
    assert abs(optimized(x) - model(x)).max() <= 0.1 * model(x).abs().max()


def test_what_cannot_be_optimized_is_refused():
    with pytest.raises(GlocalError, match=r"model: expected a torch.nn.Module, got str"):
        glocal.optimize("botnet50")
    model = timm.create_model("resnet_micro")
    model.bn1.register_forward_hook(lambda *_: None)
    with pytest.raises(GlocalError, match=r"without hooks, got one at bn1 \(BatchNorm2d\)"):
        glocal.optimize(model)
