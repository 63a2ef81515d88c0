"""Semantic segmentation on any backbone: Semantic FPN, UPerNet, and the decoders of segmentation_models_pytorch.

Semantic FPN: Panoptic Feature Pyramid Networks, Kirillov et al. 2019. https://arxiv.org/abs/1901.02446
UPerNet: Unified Perceptual Parsing for Scene Understanding, Xiao et al. 2018. https://arxiv.org/abs/1807.10221
"""

from collections import OrderedDict
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from glocal.errors import GlocalError, check_choice
from glocal.heads.backbone import check_keywords, create_backbone
from glocal.heads.norm import num_groups
from glocal.heads.pyramid import STRIDES, PyramidAdapter

# smp's decoders on a pyramid; its DPT only works on the tokens of timm's ViTs
SMP = (
    "unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet", "deeplabv3", "deeplabv3plus", "pan", "segformer",
)  # fmt: skip
KINDS = ("semantic_fpn", "upernet", *(f"smp_{name}" for name in SMP))

# Settings by image size. "ade20k": the published settings, sides of 512 pixels. "small": images of about
# 128 pixels, heads for two CPU cores. smp's decoders are the same for both.
PRESETS: dict[str, dict[str, dict[str, int]]] = {
    "ade20k": {},
    "small": {"semantic_fpn": {"dim": 96, "head_dim": 64}, "upernet": {"dim": 96}},
}


class ConvNorm(nn.Sequential):
    """Convolution, GroupNorm (`num_groups`), ReLU."""

    def __init__(self, in_chs: int, out_chs: int, kernel: int):
        conv = nn.Conv2d(in_chs, out_chs, kernel, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        super().__init__(conv, nn.GroupNorm(num_groups(out_chs), out_chs), nn.ReLU())


def resize(x: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """(B, C, h, w) -> (B, C, *size), bilinear."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def pad_to_whole(x: Tensor) -> Tensor:
    """(B, C, H, W) -> zero-padded at the right and bottom to multiples of the coarsest stride, as in detectors.

    timm's Transformers reject sizes that their patches do not divide.
    """
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % STRIDES[-1], 0, -height % STRIDES[-1]))


class PoolTo(nn.Module):
    """Averages over ``side`` x ``side`` cells, like `nn.AdaptiveAvgPool2d`, by products that ONNX supports at any size.

    Args:
        side: cells along each axis; they overlap if it does not divide the map.
    """

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, side, side)."""
        rows, columns = (self._weights(length, x) for length in x.shape[-2:])
        return rows @ x @ columns.T

    def _weights(self, length: int, x: Tensor) -> Tensor:
        """(side, length) weight of each pixel in each cell: cell i goes from floor(i n / s) to ceil((i + 1) n / s)."""
        place, cell = torch.arange(length, device=x.device), torch.arange(self.side, device=x.device)[:, None]
        inside = ((place + 1) * self.side > cell * length) & (place * self.side < (cell + 1) * length)
        return inside.to(x.dtype) / inside.sum(1, keepdim=True)


class SemanticFPN(nn.Module):
    """FPN whose levels are upsampled to stride 4 and summed (Kirillov et al. 2019, §3.1, Fig. 3).

    A level of stride s has log2(s / 4) convolutions, at least one, each followed by 2x upsampling above stride 4.

    Args:
        channels: of the levels at strides 4, 8, 16 and 32.
        num_classes: of the logits.
        dim: channels of the FPN.
        head_dim: channels after it.
        drop_rate: dropout before the classifier (0.1 in mmsegmentation, with which the papers train).
    """

    def __init__(
        self, channels: list[int], num_classes: int, *, dim: int = 256, head_dim: int = 128, drop_rate: float = 0.1
    ):
        super().__init__()
        self.fpn = FeaturePyramidNetwork(channels, dim)
        self.branches = nn.ModuleList(
            nn.ModuleList(ConvNorm(head_dim if step else dim, head_dim, 3) for step in range(max(1, i)))
            for i in range(len(channels))
        )
        self.classifier = nn.Sequential(nn.Dropout2d(drop_rate), nn.Conv2d(head_dim, num_classes, 1))

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Maps at strides 4 to 32 -> (B, num_classes, h, w) logits at stride 4."""
        maps = list(self.fpn(OrderedDict((str(i), level) for i, level in enumerate(levels))).values())
        merged = []
        for i, branch in enumerate(self.branches):
            x = maps[i]
            sizes = [level.shape[-2:] for level in maps[: max(i, 1)]][::-1]  # of half the stride, and so on
            for conv, size in zip(cast(nn.ModuleList, branch), sizes, strict=True):
                x = resize(conv(x), size)
            merged.append(x)
        return self.classifier(torch.stack(merged).sum(0))


class UPerNet(nn.Module):
    """Pyramid pooling on the last level, FPN above it, all levels fused at stride 4 (Xiao et al. 2018, §3.1, Fig. 4).

    Only the scene parsing head, as in Swin and its successors. GroupNorm instead of BatchNorm: the 1x1 map of the
    pyramid pooling has no statistics for a batch of one image. Groups have at least four channels, so they always do.

    Args:
        channels: of the levels at strides 4, 8, 16 and 32.
        num_classes: of the logits.
        dim: channels of the head.
        scales: sides of the pooled maps (Zhao et al. 2017, "PSPNet", §3.2).
        drop_rate: dropout before the classifier.
    """

    def __init__(
        self,
        channels: list[int],
        num_classes: int,
        *,
        dim: int = 512,
        scales: tuple[int, ...] = (1, 2, 3, 6),
        drop_rate: float = 0.1,
    ):
        super().__init__()
        self.pools = nn.ModuleList(nn.Sequential(PoolTo(scale), ConvNorm(channels[-1], dim, 1)) for scale in scales)
        self.pooled = ConvNorm(channels[-1] + len(scales) * dim, dim, 3)
        self.laterals = nn.ModuleList(ConvNorm(chs, dim, 1) for chs in channels[:-1])
        self.smooths = nn.ModuleList(ConvNorm(dim, dim, 3) for _ in channels[:-1])
        self.fuse = ConvNorm(len(channels) * dim, dim, 3)
        self.classifier = nn.Sequential(nn.Dropout2d(drop_rate), nn.Conv2d(dim, num_classes, 1))

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Maps at strides 4 to 32 -> (B, num_classes, h, w) logits at stride 4."""
        last = levels[-1]
        context = [resize(pool(last), last.shape[-2:]) for pool in self.pools]
        x = self.pooled(torch.cat((last, *context), dim=1))
        maps = [x]
        for lateral, smooth, level in zip(self.laterals[::-1], self.smooths[::-1], levels[-2::-1], strict=True):
            x = lateral(level) + resize(x, level.shape[-2:])
            maps.append(smooth(x))
        maps = [resize(x, levels[0].shape[-2:]) for x in reversed(maps)]
        return self.classifier(self.fuse(torch.cat(maps, dim=1)))


class Segmenter(nn.Module):
    """A pyramid and a decoder: image -> logits per pixel.

    Args:
        pyramid: image -> maps.
        decoder: maps -> logits at the finest map's size.
    """

    def __init__(self, pyramid: nn.Module, decoder: nn.Module):
        super().__init__()
        self.pyramid = pyramid
        self.decoder = decoder

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) normalised -> (B, num_classes, H, W) logits."""
        height, width = x.shape[-2:]
        x = pad_to_whole(x)
        return resize(self.decoder(self.pyramid(x)), x.shape[-2:])[..., :height, :width]


class SmpSegmenter(nn.Module):
    """A model of segmentation_models_pytorch at any image size: padded to whole strides, and cropped again.

    Args:
        network: (B, 3, H, W) -> (B, num_classes, H, W) for H and W that the coarsest stride divides.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) normalised -> (B, num_classes, H, W) logits."""
        height, width = x.shape[-2:]
        return self.network(pad_to_whole(x))[..., :height, :width]


def create_segmenter(
    kind: str,
    backbone: str | nn.Module,
    num_classes: int,
    *,
    preset: str = "ade20k",
    pretrained: bool = False,
    weights: str | Path | None = None,
    norm: str = "batch",
    frozen_stages: int = 0,
    backbone_kwargs: dict[str, Any] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """A segmentation model on a backbone: (B, 3, H, W) normalised images -> (B, num_classes, H, W) logits, any H, W.

    Args:
        kind: "semantic_fpn", "upernet", or "smp_" and a decoder of segmentation_models_pytorch ("smp_unet", ...).
        backbone: a name of glocal or timm, or a module made with ``features_only=True``.
        num_classes: of the logits, including background if it is labelled.
        preset: "ade20k" for the published settings, "small" for images of about 128 pixels on a CPU.
        pretrained: load timm's weights into the backbone.
        weights: a checkpoint file for the backbone.
        norm: the backbone's BatchNorm: "batch", "frozen" or "sync", see `create_backbone`.
        frozen_stages: stages of the backbone to freeze, with its stem.
        backbone_kwargs: further keywords of the backbone.
        kwargs: of `SemanticFPN`, `UPerNet` or smp's class; they override the preset.

    Raises:
        GlocalError: if the kind, the preset, a keyword or the backbone is unknown, or a library is not installed.
    """
    check_choice("segmenter", kind, KINDS)
    check_choice("preset", preset, tuple(PRESETS))
    kwargs = {**PRESETS[preset].get(kind, {}), **kwargs}
    features = create_backbone(
        backbone,
        pretrained=pretrained,
        weights=weights,
        norm=norm,
        frozen_stages=frozen_stages,
        **(backbone_kwargs or {}),
    )
    if kind.startswith("smp_"):
        try:
            from glocal.heads.smp import create_smp
        except ModuleNotFoundError as error:
            raise GlocalError(f"{kind}: {error.name} is not installed; pip install 'glocal[segment]'") from error
        return SmpSegmenter(create_smp(kind.removeprefix("smp_"), features, num_classes, **kwargs))
    decoder = {"semantic_fpn": SemanticFPN, "upernet": UPerNet}[kind]
    check_keywords(kind, kwargs, decoder)
    pyramid = PyramidAdapter(features)
    return Segmenter(pyramid, decoder(pyramid.channels, num_classes, **kwargs))
