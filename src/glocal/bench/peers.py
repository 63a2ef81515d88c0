"""Peers: the same models in other packages, with our weights, as baselines for speed.

The only file of this package that knows model names. A peer is a row of `PEERS`: its package, our models, its
construction and its parameter names. Whether it computes the same function is measured.
"""

import importlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from glocal.errors import GlocalError

SAME_FUNCTION = 1e-4
"""Largest difference of outputs in float32, relative to the largest output, for equal functions."""

Rules = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Peer:
    """An implementation of some of our models in another package.

    Attributes:
        package: pip name.
        module: import name.
        models: pattern of the names of our models.
        make: module, image size in pixels and groups of that pattern -> their model with 1,000 classes.
        rules: (pattern, replacement) from their parameter names to ours, where our model's `adapt_checkpoint` does not
            suffice.
        differs: known difference from our model; the measurement decides.
    """

    package: str
    module: str
    models: str
    make: Callable[..., nn.Module]
    rules: Rules = ()
    differs: str = ""


@dataclass(frozen=True)
class PeerModel:
    """A model of a peer.

    Attributes:
        source: package and version.
        model: with our weights if they fit.
        difference: largest difference of its outputs from ours, relative to our largest output; None if our weights do
            not fit.
        reason: why the function differs or the weights do not fit; None if equal.
    """

    source: str
    model: nn.Module
    difference: float | None
    reason: str | None

    @property
    def same_function(self) -> bool:
        """Whether it computes the same function as ours."""
        return self.reason is None


class Logits(nn.Module):
    """A transformers model that returns only its logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) images -> (B, K) logits."""
        return self.model(x).logits


RESNETS: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "18": ("basic", (2, 2, 2, 2)),
    "34": ("basic", (3, 4, 6, 3)),
    "50": ("bottleneck", (3, 4, 6, 3)),
    "101": ("bottleneck", (3, 4, 23, 3)),
    "152": ("bottleneck", (3, 8, 36, 3)),
}
VITS = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
"""Channels of a token, blocks, heads."""
CVTS: Mapping[str, dict[str, Any]] = {
    "13": {"embed_dim": [64, 192, 384], "depth": [1, 2, 10], "num_heads": [1, 3, 6]},
    "21": {"embed_dim": [64, 192, 384], "depth": [1, 4, 16], "num_heads": [1, 3, 6]},
    "w24": {"embed_dim": [192, 768, 1024], "depth": [2, 2, 20], "num_heads": [3, 12, 16]},
}


def _torchvision_resnet(torchvision: Any, image_size: int, name: str) -> nn.Module:
    return torchvision.models.get_model(name)


def _torchvision_vit(torchvision: Any, image_size: int, size: str, patch_size: str) -> nn.Module:
    return torchvision.models.get_model(f"vit_{size[0]}_{patch_size}", image_size=image_size)


def _timm_resnet(timm: Any, image_size: int, name: str) -> nn.Module:
    return timm.create_model(name)


def _timm_vit(timm: Any, image_size: int, name: str) -> nn.Module:
    return timm.create_model(name, img_size=image_size)


def _transformers_resnet(transformers: Any, image_size: int, depth: str) -> nn.Module:
    kind, depths = RESNETS[depth]
    widths = [64, 128, 256, 512] if kind == "basic" else [256, 512, 1024, 2048]
    config = transformers.ResNetConfig(layer_type=kind, depths=depths, hidden_sizes=widths, num_labels=1000)
    return Logits(transformers.ResNetForImageClassification(config))


def _transformers_vit(transformers: Any, image_size: int, size: str, patch_size: str) -> nn.Module:
    dim, depth, num_heads = VITS[size]
    config = transformers.ViTConfig(
        hidden_size=dim,
        num_hidden_layers=depth,
        num_attention_heads=num_heads,
        intermediate_size=4 * dim,
        layer_norm_eps=1e-6,  # as in timm and the release; the default there is 1e-12
        image_size=image_size,
        patch_size=int(patch_size),
        num_labels=1000,
    )
    return Logits(transformers.ViTForImageClassification(config))


def _transformers_cvt(transformers: Any, image_size: int, depth: str) -> nn.Module:
    config = transformers.CvtConfig(**CVTS[depth], num_labels=1000)
    return Logits(transformers.CvtForImageClassification(config))


def _vit_pytorch(vit_pytorch: Any, image_size: int, size: str, patch_size: str) -> nn.Module:
    dim, depth, num_heads = VITS[size]
    shape = {"dim": dim, "depth": depth, "heads": num_heads, "mlp_dim": 4 * dim}
    return vit_pytorch.ViT(image_size=image_size, patch_size=int(patch_size), num_classes=1000, **shape)


def _bottle_stack(package: Any, image_size: int, stride_1: str | None) -> nn.Module:
    """ResNet-50 of torchvision with their attention in its last stage."""
    model = torchvision.models.get_model("resnet50")
    model.layer4 = package.BottleStack(
        dim=1024,
        fmap_size=image_size // 16,
        dim_out=2048,
        num_layers=3,
        heads=4,
        dim_head=128,
        downsample=not stride_1,
        rel_pos_emb=True,
    )
    return model


BOTTLE_STACK: Rules = (
    (r"^layer4\.net\.", "layer4."),
    (r"^(layer4\.\d)\.shortcut\.", r"\1.downsample."),
    (r"^(layer4\.\d)\.net\.0\.", r"\1.conv1."),
    (r"^(layer4\.\d)\.net\.1\.", r"\1.bn1."),
    (r"^(layer4\.\d)\.net\.3\.to_qkv\.", r"\1.conv2.qkv."),
    (r"^(layer4\.\d)\.net\.3\.pos_emb\.", r"\1.conv2.position."),
    (r"^(layer4\.\d)\.net\.5\.", r"\1.bn2."),
    (r"^(layer4\.\d)\.net\.7\.", r"\1.conv3."),
    (r"^(layer4\.\d)\.net\.8\.", r"\1.bn3."),
)
VIT = r"glocal_vit_(tiny|small|base|large)_patch(16|32)_224"
PEERS = (
    Peer("torchvision", "torchvision", r"glocal_(resnet(?:18|34|50|101|152))", _torchvision_resnet),
    Peer("torchvision", "torchvision", r"glocal_vit_(base|large)_patch(16|32)_224", _torchvision_vit),
    Peer("timm", "timm", r"glocal_(resnet(?:18|34|50|101|152))", _timm_resnet),
    Peer(
        "timm",
        "timm",
        r"glocal_(vit_(?:(?:tiny|small|base|large)_patch16|(?:small|base|large)_patch32)_224)",
        _timm_vit,
    ),
    Peer("transformers", "transformers", r"glocal_resnet(18|34|50|101|152)", _transformers_resnet),
    Peer("transformers", "transformers", VIT, _transformers_vit),
    Peer(
        "transformers",
        "transformers",
        r"cvt_(13|21|w24)",
        _transformers_cvt,
        differs="exact GELU instead of the authors' QuickGELU",
    ),
    Peer(
        "vit-pytorch",
        "vit_pytorch",
        VIT,
        _vit_pytorch,
        differs="norms before and after the patch projection; q, k and v without bias",
    ),
    Peer(
        "bottleneck-transformer-pytorch",
        "bottleneck_transformer_pytorch",
        r"botnet(?:50|(_s1)_50)",
        _bottle_stack,
        rules=BOTTLE_STACK,
        differs="a 3x3 convolution on strided shortcuts",
    ),
)


def peers_of(name: str) -> list[Peer]:
    """The peers of a model, installed or not."""
    return [peer for peer in PEERS if re.fullmatch(peer.models, name)]


def is_installed(peer: Peer) -> bool:
    """Whether its package can be imported here."""
    return importlib.util.find_spec(peer.module) is not None


def make_peer(peer: Peer, name: str, ours: nn.Module, image_size: int) -> PeerModel:
    """A peer with our weights, and the difference of its outputs.

    Args:
        peer: one of `peers_of`, installed.
        name: of our model.
        ours: the model for this image size, on the CPU. Call `randomize_weights` first: zeros and ones of the
            initialisation would hide terms.
        image_size: side in pixels.
    """
    match = re.fullmatch(peer.models, name)
    assert match is not None
    with torch.random.fork_rng(devices=[]):
        theirs = peer.make(importlib.import_module(peer.module), image_size, *match.groups())
    source = f"{peer.package} {importlib.metadata.version(peer.package)}"
    try:
        copy_weights(ours, theirs.model if isinstance(theirs, Logits) else theirs, rules=peer.rules)
    except GlocalError as error:
        return PeerModel(source, theirs, None, peer.differs or str(error))
    difference = relative_difference(ours.eval(), theirs.eval(), image_size)
    same = difference <= SAME_FUNCTION
    return PeerModel(source, theirs, difference, None if same else peer.differs or "its outputs differ")


def copy_weights(ours: nn.Module, theirs: nn.Module, *, rules: Rules = ()) -> None:
    """Copy our weights into their model.

    Our ``adapt_checkpoint`` converts their checkpoints to ours by renaming, joining and reshaping. Here it is inverted:
    it converts a checkpoint of theirs with enumerated values, which shows the source of each value in our weights.

    Args:
        ours: with or without an ``adapt_checkpoint``.
        theirs: the target.
        rules: (pattern, replacement), applied to their names first.

    Raises:
        GlocalError: if an entry of one model has no counterpart in the other.
    """
    numbered, total = {}, 0
    for name, tensor in theirs.state_dict().items():
        numbers = torch.arange(total, total + tensor.numel(), dtype=torch.int32).reshape(tensor.shape)
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        numbered[name] = numbers
        total += tensor.numel()
    adapt = getattr(ours, "adapt_checkpoint", None)
    arrived: Mapping[str, Tensor] = adapt(numbered, ours) if adapt else numbered
    weights = ours.state_dict()
    if problem := next(_misfits(weights, arrived, total), None):
        raise GlocalError(f"it has other parameters: {problem}")
    values = torch.empty(total)
    for name, numbers in arrived.items():
        values[numbers.flatten().long()] = weights[name].flatten().float().cpu()
    start = 0
    for tensor in theirs.state_dict().values():
        tensor.copy_(values[start : start + tensor.numel()].reshape(tensor.shape))
        start += tensor.numel()


def _misfits(weights: Mapping[str, Tensor], arrived: Mapping[str, Tensor], total: int) -> Iterator[str]:
    yield from (f"no {name}" for name in weights if name not in arrived)
    yield from (f"{name}, missing in ours" for name in arrived if name not in weights)
    for name, numbers in arrived.items():
        if numbers.shape != weights[name].shape:
            yield f"{name} is {tuple(numbers.shape)}, ours {tuple(weights[name].shape)}"
        if numbers.dtype != torch.int32:  # a table that was resampled
            yield f"{name} differs in size"
    if sum(numbers.numel() for numbers in arrived.values()) != total:
        yield "values missing in ours"


def relative_difference(ours: nn.Module, theirs: Callable[[Tensor], Tensor], image_size: int) -> float:
    """Largest difference of the outputs of two models for the same images, relative to the largest output of the first.

    Args:
        ours: on the CPU, in eval mode.
        theirs: likewise, or a function of (B, 3, H, W) images.
        image_size: side in pixels.
    """
    images = _images(2, image_size, seed=1)
    with torch.inference_mode():
        expected, got = ours(images), theirs(images)
    return float((got - expected).abs().max() / expected.abs().max())


def randomize_weights(model: nn.Module, image_size: int) -> None:
    """Redraw all weights in place, so that every term of the function affects the outputs.

    Zeros at the end of a residual branch would hide the branch, small weights the nonlinearity of an activation:
    weights get unit gain, all else values away from 0 and 1. BatchNorm gets the means of a few random images, so that
    the signal neither vanishes nor explodes, and second moments as variances: random images look alike to a random
    model, so their variance would amplify rounding.
    """
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        if tensor.ndim >= 2 and name.endswith("weight"):
            drawn = torch.randn(tensor.shape, generator=generator) / tensor[0].numel() ** 0.5
        else:
            drawn = 0.4 * (torch.rand(tensor.shape, generator=generator) - 0.5)
            if tensor.ndim == 1 and name.endswith(("weight", "running_var")):
                drawn = 1 + 2.5 * drawn  # 0.5 to 1.5
        tensor.copy_(drawn)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(_images(4, image_size, seed=0))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        if norm.running_mean is not None and norm.running_var is not None:
            second_moment = norm.running_var + norm.running_mean.square()
            norm.running_var.copy_((second_moment + second_moment.mean()) / 2)
    model.eval()


def _images(batch_size: int, image_size: int, *, seed: int) -> Tensor:
    """Noise with random brightness per image and channel: plain noise images look alike to a deep model."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(batch_size, 3, image_size, image_size, generator=generator)
    return noise * torch.rand(batch_size, 3, 1, 1, generator=generator)
