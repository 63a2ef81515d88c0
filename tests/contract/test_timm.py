"""timm's model contract over every registered name: full sizes on the meta device, values on shortened models."""

from copy import deepcopy
from functools import cache

import pytest
import pytorch_lightning as pl
import timm
import torch
from PIL import Image
from pytorch_lightning.utilities.model_summary import ModelSummary
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config
from timm.models._manipulate import group_with_matcher
from timm.models._registry import model_entrypoint
from timm.optim import param_groups_layer_decay
from torch import nn

import glocal
from glocal.errors import GlocalError
from glocal.models import CAT, BoTNet, Conformer, CvT, ResNet, T2TViT, VisionTransformer
from glocal.training.hardware import check_bf16_convolutions
from tests.randomized import calm, undrawn

NAMES = glocal.list_models()
SHORTER = {
    ResNet: {"depths": (1, 1, 1, 1)},
    BoTNet: {"depths": (1, 1, 1, 1)},
    VisionTransformer: {"depth": 3},
    T2TViT: {"depth": 3},
    CvT: {"depths": (1, 1, 2)},
    Conformer: {"depth": 6},
}


@cache
def on_meta(name: str) -> nn.Module:
    """The model in full, without memory for its weights."""
    with torch.device("meta"):
        return timm.create_model(name).eval()


def shorter(name: str) -> dict:
    """Keywords that leave the model one block a stage, or three in all."""
    if name == "t2t_vit_dense":
        return {"depth": (1, 1, 1)}
    model = on_meta(name)
    return {"depths": (1,) * len(model.stages)} if isinstance(model, CAT) else SHORTER[type(model)]


def short(name: str, **kwargs) -> nn.Module:
    """The model with one block a stage, or three in all: what does not depend on depth holds for the whole."""
    return deepcopy(initialized(name)) if not kwargs else timm.create_model(name, **shorter(name), **kwargs)


@cache
def initialized(name: str) -> nn.Module:
    """One of each, since drawing the weights takes longer than most tests of them."""
    return timm.create_model(name, **shorter(name))


def same(a, b) -> bool:
    """Whether features are equal; those of two branches are a pair."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True)) if isinstance(a, tuple) else torch.equal(a, b)


def heads(model: nn.Module) -> tuple[nn.Module, ...]:
    classifier = model.get_classifier()
    return classifier if isinstance(classifier, tuple) else (classifier,)


def classified(model: nn.Module, pooled: torch.Tensor) -> torch.Tensor:
    """The mean of what the heads make of their share of the channels."""
    parts = pooled.split([head.in_features for head in heads(model)], dim=1)
    return torch.stack([head(part) for head, part in zip(heads(model), parts, strict=True)]).mean(0)


# Shortened, botnet101 is botnet50 and ViT-L a wider ViT-Ti: values are checked on one of each kind, the rest is slow.
KINDS = (
    "glocal_resnet18",
    "glocal_resnet50",
    "botnet50",
    "botnet_s1_50",
    "botnet_s1_59",
    "glocal_vit_tiny_patch16_224",
    "t2t_vit_7",
    "t2t_vit_t_14",
    "t2t_vit_16_ghost",
    "t2t_vit_dense",
    "cvt_13",
    "cat_tiny",
    "conformer_tiny_patch16",
)
MICROS = [name for name in NAMES if name.endswith("_micro")]
EVERY_NAME = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(
    params=[n if n in KINDS or n.endswith("_micro") else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def name(request) -> str:
    return request.param


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_no_name_is_taken_from_timm():
    assert len(NAMES) == len(set(NAMES)) > 15
    assert all(model_entrypoint(name).__module__.startswith("glocal.") for name in NAMES)
    assert not [name for name in NAMES if name.removeprefix("glocal_") == name and name in TIMMS_OWN]


TIMMS_OWN = {name for name in timm.list_models() if model_entrypoint(name).__module__.startswith("timm.")}


@EVERY_NAME
def test_full_size_on_meta(name):
    """Logits, features, feature_info and the modules that the configuration names, at the published size."""
    model = on_meta(name)
    channels, height, width = model.pretrained_cfg["input_size"]
    x = torch.empty(2, channels, height, width, device="meta")
    with torch.no_grad():
        features, maps = model.forward_intermediates(x)
        logits = model.forward_head(features)
    assert logits.shape == (2, model.num_classes) == (2, 1000)
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)
    assert len(maps) == len(model.feature_info)
    modules = dict(model.named_modules())
    for info, feature in zip(model.feature_info, maps, strict=True):
        side = -(-height // info["reduction"]), -(-width // info["reduction"])
        assert feature.shape == (2, info["num_chs"], *side)
        assert info["module"] in modules
    config = model.pretrained_cfg
    if config["first_conv"]:  # a T2T-ViT begins with a linear layer
        assert modules[config["first_conv"]].weight.shape[1] == channels
    assert tuple(modules[head] for head in model.classifiers()) == heads(model)
    assert all(head.weight.shape[0] == 1000 for head in heads(model))
    if config["pool_size"]:
        assert maps[-1].shape[-2:] == tuple(config["pool_size"])


@EVERY_NAME
def test_timm_finds_its_transform(name):
    model = on_meta(name)
    config = resolve_data_config(model=model)
    transform = create_transform(**config)
    assert config["input_size"] == model.pretrained_cfg["input_size"]
    assert transform(Image.new("RGB", (300, 260))).shape == config["input_size"]


@pytest.mark.parametrize("size", [(32, 32), (33, 71), (64, 40)])
def test_any_size_and_batch_order_does_not_matter(name, size):
    model = calm(undrawn(short, name, num_classes=5))
    x = images(3, 3, *size)
    with torch.no_grad():
        logits = model(x)
        assert logits.shape == (3, 5)
        assert logits.isfinite().all()
        assert logits.std(0).min() > 0, "the images make no difference"
        torch.testing.assert_close(model(x[1:2]), logits[1:2], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model(x.flip(0)), logits.flip(0), rtol=1e-4, atol=1e-4)


def test_gradients_reach_every_parameter(name):
    # where the class token alone is read, the convolution of the last queries does nothing
    pool = {"global_pool": "avg"} if name.startswith("cvt") else {}
    model = calm(undrawn(short, name, num_classes=5, **pool)).train()
    size = model.pretrained_cfg["input_size"][-1] // (1 if "micro" in name else 4)
    model(images(2, 3, size, size + 8)).square().sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without


def test_features_equal_intermediates_equal_hooks(name):
    model = calm(undrawn(short, name))
    x = images(2, 3, 64, 48)
    with torch.no_grad():
        features, maps = model.forward_intermediates(x)
        assert same(features, model.forward_features(x))
        assert torch.equal(model.forward_head(features), model(x))
        last = len(maps) - 1
        (early,) = model.forward_intermediates(x, indices=[0], stop_early=True, intermediates_only=True)
        assert torch.equal(early, maps[0])
        assert [torch.equal(a, b) for a, b in zip(model.forward_intermediates(x, 2)[1], maps[-2:], strict=True)] == [
            True
        ] * 2
        normed = model.forward_intermediates(x, [last], norm=True, intermediates_only=True)[0]
        assert torch.equal(normed, model.to_map(features, last, 64, 48))

        extractor = calm(undrawn(short, name, features_only=True))
        assert extractor.feature_info.reduction() == [model.feature_info[i]["reduction"] for i in extractor.out_indices]
        wrapped = extractor(x)
        assert [m.shape[1] for m in wrapped] == extractor.feature_info.channels()
        for index, feature in zip(extractor.out_indices, wrapped, strict=True):
            torch.testing.assert_close(feature, calm_features(name, x)[index])
    with pytest.raises(ValueError, match="output_fmt: expected 'NCHW', got 'NHWC'"):
        model.forward_intermediates(x, output_fmt="NHWC")


def calm_features(name: str, x: torch.Tensor) -> list[torch.Tensor]:
    """The maps of a whole model with the weights that `calm` gives to the pruned one."""
    extractor = calm(undrawn(short, name, features_only=True))
    whole = short(name)
    whole.load_state_dict({**whole.state_dict(), **extractor.model.state_dict()})
    return whole.eval().forward_intermediates(x, intermediates_only=True)


@pytest.mark.parametrize("indices", [(0,), (0, 2), (-1,)])
def test_pruned_features(name, indices):
    extractor = short(name, features_only=True, out_indices=indices).eval()
    whole = short(name)
    kept = extractor.model.state_dict()
    assert set(kept) < set(whole.state_dict())
    whole.load_state_dict({**whole.state_dict(), **kept})
    x = images(1, 3, 48, 64)
    with torch.no_grad():
        expected = whole.eval().forward_intermediates(x, indices=list(indices), intermediates_only=True)
        for got, want in zip(extractor(x), expected, strict=True):
            assert torch.equal(got, want)
    if indices == (0,):
        later = whole.feature_info[-1]["module"] + "."
        assert not [key for key in kept if key.startswith(later)], "later stages are gone"
        assert [key for key in whole.state_dict() if key.startswith(later)]


def test_reset_classifier(name):
    model = calm(undrawn(short, name))
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        pooled = model.forward_head(model.forward_features(x), pre_logits=True)
        model.reset_classifier(7)
        assert model.num_classes == 7
        assert model(x).shape == (2, 7)
        torch.testing.assert_close(model(x), classified(model, pooled))
        model.reset_classifier(0)
        assert torch.equal(model(x), pooled)
        model.reset_classifier(0, "")
        assert torch.equal(model(x), unpooled(model, x))
        model.reset_classifier(3, "avg")
        assert model(x).shape == (2, 3)


def test_constructor_arguments_of_timm(name):
    model = short(
        name, num_classes=4, in_chans=1, global_pool="avg", img_size=(64, 96), drop_rate=0.5, drop_path_rate=0.5
    )
    x = images(2, 1, 64, 96)
    assert model.eval()(x).shape == (2, 4)
    model = calm(model)
    torch.manual_seed(0)
    assert not torch.equal(model.train()(x), model(x)), "dropout and stochastic depth act in training"
    model.eval()
    assert torch.equal(model(x), model(x))
    headless = short(name, num_classes=0, global_pool="")
    assert torch.equal(headless.eval()(x := images(1, 3, 32, 32)), unpooled(headless, x))


def unpooled(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The features, of two branches the first."""
    features = model.forward_features(x)
    return features[0] if isinstance(features, tuple) else features


def test_weights_come_from_a_file_whatever_the_head_and_channels(name, tmp_path):
    source = calm(undrawn(short, name))
    file = tmp_path / "model.safetensors"
    save_file(source.state_dict(), file)
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        same = undrawn(short, name, pretrained=True, pretrained_cfg_overlay={"file": str(file)}).eval()
        assert torch.equal(same(x), source(x))
        assert torch.equal(undrawn(short, name, checkpoint_path=str(file)).eval()(x), source(x))
        other = undrawn(
            short, name, pretrained=True, pretrained_cfg_overlay={"file": str(file)}, num_classes=3, in_chans=1
        ).eval()
        assert other(x[:, :1]).shape == (1, 3)
        grey = x[:, :1].expand(-1, 3, -1, -1)
        if other.pretrained_cfg["first_conv"]:  # the norms before T2T-ViT's linear layer leave it near, not equal
            torch.testing.assert_close(unpooled(other, x[:, :1]), unpooled(source, grey), rtol=1e-3, atol=1e-4)
        extractor = undrawn(
            short, name, pretrained=True, pretrained_cfg_overlay={"file": str(file)}, features_only=True
        ).eval()
        expected = source.forward_intermediates(x, indices=list(extractor.out_indices), intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(extractor(x), expected, strict=True))


def test_round_trip_through_a_local_hub_folder(tmp_path):
    for name in MICROS:
        model = calm(undrawn(timm.create_model, name, num_classes=4))
        timm.models.save_for_hf(model, tmp_path / name, safe_serialization=True)
        loaded = timm.create_model(f"local-dir:{tmp_path / name}", pretrained=True).eval()
        x = images(1, 3, 32, 32)
        assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("name", [name for name in NAMES if not timm.get_pretrained_cfg(name).has_weights])
def test_pretrained_without_weights_is_refused(name):
    with torch.device("meta"), pytest.raises(RuntimeError, match="No pretrained weights exist"):
        timm.create_model(name, pretrained=True)


def test_layer_groups_and_decay(name):
    model = short(name)
    for coarse in (False, True):
        groups = group_with_matcher(model.named_parameters(), model.group_matcher(coarse=coarse))
        assert sorted(n for names in groups.values() for n in names) == sorted(n for n, _ in model.named_parameters())
        stem = next(iter(groups.values()))
        assert (model.pretrained_cfg["first_conv"] or "tokens_to_token.project") + ".weight" in stem
        assert {f"{head}.weight" for head in model.classifiers()} <= set(groups[max(groups)])
    scales = [group["lr_scale"] for group in param_groups_layer_decay(model, layer_decay=0.5)]
    assert min(scales) < 0.3
    assert max(scales) == 1
    names = {n for n, _ in model.named_parameters()}
    assert model.no_weight_decay() <= names


def test_gradient_checkpointing_has_equal_gradients(name):
    gradients = []
    for enable in (False, True):
        model = calm(undrawn(short, name, num_classes=3)).double()  # eval mode: BatchNorm keeps its statistics
        model.set_grad_checkpointing(enable)
        model(images(2, 3, 32, 48).double()).square().sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for n, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][n], gradient, rtol=1e-10, atol=1e-12, msg=n)


FULL = ("glocal_resnet50", "botnet50", "glocal_vit_small_patch16_224", "t2t_vit_14", "cvt_13", "cat_small",
        "conformer_small_patch16")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_full_sizes_compile_and_export(name):
    model = calm(undrawn(timm.create_model, name, num_classes=5))
    dim = torch.export.Dim
    # two windows of CAT in its last stage are 448 pixels; 256 and more suffice for the others
    low = 9 if name == "cat_small" else 2
    sizes = {0: dim("b", min=1, max=64), 2: 32 * dim("h", min=low, max=32), 3: 32 * dim("w", min=low, max=32)}
    traced = images(2, 3, 320, 288)
    program = torch.export.export(model, (traced,), dynamic_shapes=(sizes,)).module()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(traced), model(traced))
        for x in (traced, images(1, 3, 352, 320)):
            torch.testing.assert_close(program(x), model(x))


@pytest.mark.parametrize("name", MICROS)
def test_compiles(name):
    model = calm(undrawn(short, name, num_classes=5))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        for shape in ((2, 3, 64, 96), (3, 3, 96, 64)):
            torch.testing.assert_close(compiled(images(*shape)), model(images(*shape)))


@pytest.mark.parametrize(
    "name",  # the slow one is quick in its optimized form: tests/test_optimize.py
    [name if name != "conformer_micro" else pytest.param(name, marks=pytest.mark.slow) for name in MICROS],
)
def test_exports_with_dynamic_sizes(name):
    model = calm(undrawn(short, name, num_classes=5))
    dim = torch.export.Dim
    # torch.export takes a map of one window for another graph, so CAT's last stage needs two: docs/cat.md
    least = 2 if name == "cat_micro" else 1
    sizes = {0: dim("b", min=1, max=64), 2: 32 * dim("h", min=least, max=32), 3: 32 * dim("w", min=least, max=32)}
    program = torch.export.export(model, (images(2, 3, 64, 96),), dynamic_shapes=(sizes,)).module()
    with torch.no_grad():
        for shape in ((1, 3, 32 * least, 32 * least), (3, 3, 96, 64)):
            x = images(*shape)
            torch.testing.assert_close(program(x), model(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_channels_last(name, dtype):
    model = calm(undrawn(short, name, num_classes=5))
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        if dtype == torch.bfloat16:
            try:
                check_bf16_convolutions(model)
            except GlocalError as error:
                pytest.skip(str(error))  # findings/torch-bf16-convolution-amx.sh
        with torch.autocast("cpu", dtype):
            half = model(x)
        assert half.isfinite().all()
        assert (half.float() - expected).abs().max() <= 0.1 * expected.abs().max()
        last = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(last, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", MICROS)
def test_a_summary_by_hooks_sees_every_layer(name):
    """As Lightning's ModelSummary and torchinfo look at a model: through hooks, while it runs."""
    model = timm.create_model(name, num_classes=5).eval()
    shapes = {}
    for key, module in model.named_modules():
        module.register_forward_hook(lambda _, __, output, key=key: shapes.update({key: output}))
    model(images(1, 3, 32, 32))
    with_parameters = {key.rpartition(".")[0] for key, _ in model.named_parameters()}
    # parameters that a module uses as they are: tables, class tokens
    own = {key for key, module in model.named_modules() if not list(module.children())}
    assert not {key for key in with_parameters & own if key not in shapes} - {""}
    task = pl.LightningModule()
    task.model = model
    summary = ModelSummary(task, max_depth=2)
    assert summary.total_parameters == sum(p.numel() for p in model.parameters())
