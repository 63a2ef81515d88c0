"""DETR from transformers: its losses, and checkpoints in the names of the release and of transformers."""

import json
import re
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FrozenBatchNorm2d

from glocal.checkpoints import detr as names
from glocal.heads import create_detector
from tests.heads.scenes import scene, tiny


class Layer(nn.Module):
    """A layer of DETR's transformer, norms last (Carion et al. 2020, §A.3, Fig. 10), in the release's names."""

    def __init__(self, dim: int, num_heads: int, hidden: int, *, cross: bool):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        if cross:
            self.multihead_attn = nn.MultiheadAttention(dim, num_heads, batch_first=True)
            self.norm3 = nn.LayerNorm(dim)
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x, position, memory=None, memory_position=None):
        query = x + position
        x = self.norm1(x + self.self_attn(query, query, x)[0])
        if memory is None:
            return self.norm2(x + self.linear2(self.linear1(x).relu()))
        x = self.norm2(x + self.multihead_attn(x + position, memory + memory_position, memory)[0])
        return self.norm3(x + self.linear2(self.linear1(x).relu()))


class Stack(nn.Module):
    def __init__(self, layers, norm=None):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        if norm:
            self.norm = norm


class Mlp(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, 4)])

    def forward(self, x):
        return self.layers[2](self.layers[1](self.layers[0](x).relu()).relu())


class Release(nn.Module):
    """DETR in the module tree, and so the names, of facebookresearch/detr; written from the paper."""

    def __init__(self, resnet, num_classes=5, dim=32, num_heads=4, hidden=48, depth=2, num_queries=7):
        super().__init__()
        body = IntermediateLayerGetter(resnet(norm_layer=FrozenBatchNorm2d), {"layer4": "0"})
        self.backbone = nn.Sequential(nn.Module())
        self.backbone[0].body = body
        self.transformer = nn.Module()
        make = [[Layer(dim, num_heads, hidden, cross=cross) for _ in range(depth)] for cross in (False, True)]
        self.transformer.encoder = Stack(make[0])
        self.transformer.decoder = Stack(make[1], nn.LayerNorm(dim))
        self.class_embed = nn.Linear(dim, num_classes + 1)
        self.bbox_embed = Mlp(dim)
        self.query_embed = nn.Embedding(num_queries, dim)
        width = resnet().fc.in_features
        self.input_proj = nn.Conv2d(width, dim, 1)
        self.dim = dim

    def position(self, height, width):
        """Sines of rows in the first half of the channels, of columns in the second, from 0 to 2 pi (§A.4)."""
        frequency = 10000 ** (2 * (torch.arange(self.dim // 2) // 2) / (self.dim // 2))
        parts = []
        for length, axis in ((height, 0), (width, 1)):
            angle = (torch.arange(length) + 1) / (length + 1e-6) * 2 * torch.pi
            angle = angle[:, None] / frequency
            wave = torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1)
            parts.append(wave[:, None].expand(-1, width, -1) if axis == 0 else wave[None].expand(height, -1, -1))
        return torch.cat(parts, dim=2).flatten(0, 1)[None]

    def forward(self, x):
        x = self.input_proj(self.backbone[0].body(x)["0"])
        position = self.position(*x.shape[-2:])
        x = x.flatten(2).transpose(1, 2)
        for layer in self.transformer.encoder.layers:
            x = layer(x, position)
        query = torch.zeros(len(x), *self.query_embed.weight.shape)
        for layer in self.transformer.decoder.layers:
            query = layer(query, self.query_embed.weight[None], x, position)
        query = self.transformer.decoder.norm(query)
        return self.class_embed(query), self.bbox_embed(query).sigmoid()


def detector(backbone="glocal_resnet18", num_classes=5):
    return create_detector(
        "detr", backbone, num_classes, norm="frozen", d_model=32, encoder_layers=2, decoder_layers=2, num_queries=7,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, min_size=96,
        max_size=128,
    )  # fmt: skip


def drawn(model):
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if "running_var" in name:
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.ndim > 1:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
        elif "num_batches" not in name:
            tensor.uniform_(0.2, 0.5, generator=generator)
    return model.eval()


@pytest.fixture
def release():
    return drawn(Release(torchvision.models.resnet18))


# What transformers' copies on the hub call it: in timm's names of the ResNet, and in those of its own.
HUB = (
    (r"^backbone\.0\.body\.", "model.backbone.conv_encoder.model."),
    (r"^input_proj", "model.input_projection"),
    (r"^query_embed", "model.query_position_embeddings"),
    (r"^class_embed", "class_labels_classifier"),
    (r"^bbox_embed", "bbox_predictor"),
    (r"^transformer\.decoder\.norm", "model.decoder.layernorm"),
    (r"^transformer", "model"),
    (r"multihead_attn", "encoder_attn"),
    (r"linear", "fc"),
    (r"(encoder\.layers\.\d+)\.norm2", r"\1.final_layer_norm"),
    (r"norm1\.", "self_attn_layer_norm."),
    (r"norm2\.", "encoder_attn_layer_norm."),
    (r"norm3\.", "final_layer_norm."),
)


def on_the_hub(state_dict):
    renamed = OrderedDict()
    for name, tensor in state_dict.items():
        stem = "backbone" in name
        for pattern, new in HUB[:1] if stem else HUB[1:]:
            name = re.sub(pattern, new, name)
        if "in_proj" in name:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                renamed[name.replace("in_proj_", f"{part}_proj.")] = piece
        else:
            renamed[name] = tensor
    return renamed


def in_hugging_faces_resnet(state_dict):
    """The ResNet in the names of `transformers.ResNetModel`."""
    rules = (
        (r"model\.conv1\.", "model.embedder.embedder.convolution."),
        (r"model\.bn1\.", "model.embedder.embedder.normalization."),
        (r"downsample\.0\.", "shortcut.convolution."),
        (r"downsample\.1\.", "shortcut.normalization."),
    )
    renamed = {}
    for name, tensor in state_dict.items():
        if "conv_encoder" in name:
            for pattern, new in rules:
                name = re.sub(pattern, new, name)
            name = re.sub(r"layer(\d)\.(\d+)\.", lambda m: f"encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.", name)
            name = re.sub(r"\.conv(\d)\.", lambda m: f".layer.{int(m[1]) - 1}.convolution.", name)
            name = re.sub(r"(layers\.\d+)\.bn(\d)\.", lambda m: f"{m[1]}.layer.{int(m[2]) - 1}.normalization.", name)
        renamed[name] = tensor
    return renamed


WRITTEN = {
    "release": lambda weights: {"model": weights},
    "hub": on_the_hub,
    "hub, ResNet of transformers": lambda weights: in_hugging_faces_resnet(on_the_hub(weights)),
}


@pytest.mark.parametrize("written", WRITTEN)
def test_a_checkpoint_gives_its_numbers(release, written):
    ours = detector()
    ours.load_state_dict(names.to_glocal(WRITTEN[written](release.state_dict())))
    x = torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        logits, boxes = release(x)
        out = ours.eval().network.model(pixel_values=x)
    assert (out.logits - logits).abs().max() <= 1e-4 * logits.abs().max()
    assert (out.pred_boxes - boxes).abs().max() <= 1e-5


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("depth", [50, 101])
def test_every_name_of_the_published_sizes_finds_its_place(written, depth):
    with torch.device("meta"):
        resnet = getattr(torchvision.models, f"resnet{depth}")
        theirs = Release(resnet, num_classes=91, dim=256, num_heads=8, hidden=2048, depth=6, num_queries=100)
        ours = create_detector("detr", f"glocal_resnet{depth}", 91, norm="frozen")
    converted = names.to_glocal(WRITTEN[written](theirs.state_dict()))
    expected = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    assert {name: tensor.shape for name, tensor in converted.items()} == expected
    body = names.backbone_to_glocal(WRITTEN[written](theirs.state_dict()))
    backbone = ours.network.model.model.backbone.model.pyramid.backbone.model
    assert {name: tensor.shape for name, tensor in body.items()} == {
        name: tensor.shape for name, tensor in backbone.state_dict().items()
    }


NAMES = json.loads((Path(__file__).parent / "detr_names.json").read_text(encoding="utf-8"))["names"]


def names_at(depth):
    """(release, transformers' copies) of DETR with a ResNet-50, or -101, which has more blocks in its third stage."""
    ours = {old: list(new) for old, new in NAMES.items()}
    for old, new in NAMES.items():
        for block in range(6, 23) if depth == 101 and ".layer3.1." in old else ():
            swapped = [name.replace("stages.2.layers.1.", f"stages.2.layers.{block}.") for name in new]
            ours[old.replace(".layer3.1.", f".layer3.{block}.")] = swapped
    return set(ours), {name for new in ours.values() for name in new}


@pytest.mark.parametrize("depth", [50, 101])
def test_the_names_are_those_of_transformers_own_tables(depth):
    """What is tested above is what was released: not a name more, not a name less."""
    with torch.device("meta"):
        resnet = getattr(torchvision.models, f"resnet{depth}")
        theirs = Release(resnet, num_classes=91, dim=256, num_heads=8, hidden=2048, depth=6, num_queries=100)
    released, copied = names_at(depth)
    assert set(theirs.state_dict()) == released
    hub = on_the_hub(theirs.state_dict())
    assert set(in_hugging_faces_resnet(hub)) == copied
    body = "model.backbone.conv_encoder.model."
    in_timms_names = {body + name.removeprefix("backbone.0.body.") for name in released if name.startswith("backbone")}
    assert set(hub) == in_timms_names | {name for name in copied if not name.startswith(body)}


def test_a_name_that_is_not_the_releases_is_noticed(release):
    weights = release.state_dict()
    weights["transformer.decoder.final_norm.weight"] = weights.pop("transformer.decoder.norm.weight")
    with pytest.raises(RuntimeError, match=r"decoder\.final_norm"):
        detector().load_state_dict(names.to_glocal({"model": weights}))


def test_the_size_of_detr_is_the_published_one():
    with torch.device("meta"):
        model = create_detector("detr", "glocal_resnet50", 91)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) in (41, 42)  # Tab. 1: 41M, without the BatchNorms


@pytest.mark.parametrize("kind", ["detr", "deformable_detr", "rt_detr"])
def test_the_losses_sum_to_transformers_own(kind):
    """Ours are grouped by name; the weights differ where the paper's do."""
    torch.manual_seed(0)
    model = tiny(kind, dropout=0.0, **({"num_denoising": 0} if kind == "rt_detr" else {})).train()
    image, target = scene(count=3)
    seen = {}
    forward = model.network.model.forward

    def watched(*args, **kwargs):
        seen["out"] = forward(*args, **kwargs)
        return seen["out"]

    model.network.model.forward = watched
    losses = model([image], [target])
    total = sum(losses.values())
    if kind == "deformable_detr":
        total = total - losses["loss_ce"] / 2
    assert torch.allclose(total, seen["out"].loss, rtol=1e-5)


def test_every_decoder_layer_is_supervised_and_none_normalised_for_it(release):
    """The network that trains is the one that is evaluated: with no dropout, the last layer's losses are its own."""
    ours = detector()
    ours.load_state_dict(names.to_glocal(release.state_dict()))
    ours.train()
    for module in ours.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
    model, x = ours.network.model, torch.randn(1, 3, 96, 128)
    wanted = [
        {"class_labels": torch.tensor([1, 4]), "boxes": torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.5, 0.3, 0.4]])}
    ]
    with torch.no_grad():
        logits, boxes = release(x)
        out = model(pixel_values=x, labels=wanted)
        assert torch.allclose(out.logits, logits, atol=1e-4)
        assert torch.allclose(out.pred_boxes, boxes, atol=1e-5)
        first = release.transformer.decoder.layers
        release.transformer.decoder.layers = first[:1]
        logits, boxes = release(x)
        alone = model.loss_function(logits, wanted, "cpu", boxes, model.config)[1]
    for name in ("loss_ce", "loss_bbox", "loss_giou"):
        assert torch.allclose(out.loss_dict[f"{name}_0"], alone[name], rtol=1e-4), name


def test_transformers_leaves_the_backbone_alone():
    """It would freeze every BatchNorm, and initialise anew."""
    model = tiny("detr")
    backbone = model.network.model.model.backbone.model.pyramid.backbone
    assert any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    assert all(parameter.requires_grad for parameter in backbone.parameters())


class Echo(nn.Module):
    """Stands for transformers' model: keeps what it gets, and finds what it was taught."""

    def forward(self, pixel_values, pixel_mask, labels=None):
        if labels is not None:
            self.labels, self.mask = labels, pixel_mask
            return SimpleNamespace(
                loss_dict={name: torch.ones(()) for name in ("loss_ce", "loss_vfl", "loss_bbox", "loss_giou")}
            )
        boxes = torch.stack([one["boxes"] for one in self.labels])
        logits = nn.functional.one_hot(torch.stack([one["class_labels"] for one in self.labels]), 4) * 20.0 - 10
        return SimpleNamespace(logits=logits, pred_boxes=boxes)


@pytest.mark.parametrize("kind", ["detr", "deformable_detr", "rt_detr"])
def test_boxes_go_in_and_come_back(kind):
    """Images of other proportions than their batch, one of them enlarged: units of the image, or of the batch."""
    model = tiny(kind, num_classes=3 if kind == "detr" else 4)
    echo = model.network.model = Echo()
    images, targets = zip(scene(40, 20, count=3), scene(64, 96, count=3, seed=1), strict=True)
    model(list(images), list(targets))
    for image, target, wanted, mask in zip(images, targets, echo.labels, echo.mask, strict=True):
        # the resized image's place in the batch, and the target's in it
        height, width = int(mask.any(1).sum()), int(mask.any(0).sum())
        scale = torch.tensor([width / image.shape[2], height / image.shape[1]] * 2)
        unit = torch.tensor([mask.shape[1], mask.shape[0]] if kind == "rt_detr" else [width, height]).repeat(2)
        x0, y0, x1, y1 = (target["boxes"] * scale).unbind(1)
        expected = torch.stack(((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0), dim=1) / unit
        assert torch.allclose(wanted["boxes"], expected, atol=1e-5)
        assert torch.equal(wanted["class_labels"], target["labels"])
    for found, target in zip(model.eval()(list(images)), targets, strict=True):
        for box, label in zip(target["boxes"], target["labels"], strict=True):
            best = (found["boxes"] - box).abs().amax(1) + (found["labels"] != label) * 1e3
            assert best.min() < 1e-2
            assert found["scores"][best.argmin()] > 0.9


def test_the_best_pair_of_query_and_class_comes_first():
    model = tiny("deformable_detr", detections_per_img=5).eval()
    network = model.network
    logits = torch.full((1, 8, 3), -9.0)
    logits[0, 4, 2], logits[0, 4, 1], logits[0, 0, 0] = 3.0, 1.0, 2.0
    boxes = torch.rand(1, 8, 4) * 0.2 + 0.4
    (found,) = network._to_detections(logits, boxes, [torch.tensor([64.0, 32, 64, 32])], [(32, 64)])
    assert found["labels"][:3].tolist() == [2, 0, 1]
    assert torch.equal(found["boxes"][0], found["boxes"][2])
    assert len(found["scores"]) == 5
    cx, cy, w, h = boxes[0, 4].tolist()
    expected = torch.tensor([(cx - w / 2) * 64, (cy - h / 2) * 32, (cx + w / 2) * 64, (cy + h / 2) * 32])
    assert torch.allclose(found["boxes"][0], expected, atol=1e-4)
