"""Pictures of feature maps: first-layer responses, and each stream by depth.

As in Fig. 2 of T2T-ViT (Yuan et al. 2021, https://arxiv.org/abs/2101.11986) and Fig. 5 of Conformer (Peng et al. 2021,
https://arxiv.org/abs/2105.03889) : single channels, and both branches side by side.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from glocal.analysis.depth import Point, walk


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """Pictures of a point.

    Attributes:
        name: see `Point`.
        kind: see `Point`.
        layout: of its stream, "tokens" or "map".
        strength: (B, h, w) root mean square over the channels, each centred over places and images.
        channels: (K, h, w) the channels of the first image with the largest variance.
    """

    name: str
    kind: str
    layout: str
    strength: np.ndarray
    channels: np.ndarray


@dataclass(frozen=True, eq=False)
class Features:
    """Result of `features`.

    Attributes:
        first: the first layer with weights and a map output.
        points: by depth.
    """

    first: FeatureMap
    points: tuple[FeatureMap, ...]


def features(model: nn.Module, images: Tensor, *, channels: int = 8) -> Features:
    """Feature maps of a few images.

    Args:
        model: any classifier; left unchanged.
        images: (B, 3, H, W) normalised images.
        channels: K, channels per point.
    """
    weighted = [
        name
        for name, module in model.named_modules()
        if not [*module.children()] and getattr(getattr(module, "weight", None), "ndim", 0) >= 2
    ]
    first = walk(model, images, weighted).points[0]
    points = walk(model, images).points

    def picture(point: Point) -> FeatureMap:
        maps = point.output.detach()
        centred = maps - maps.mean((0, 2, 3), keepdim=True)
        most = torch.topk(maps[0].flatten(1).var(1, correction=0), min(channels, maps.shape[1])).indices
        strength = centred.square().mean(1).sqrt()
        return FeatureMap(point.name, point.kind, point.layout, _array(strength), _array(maps[0, most]))

    return Features(picture(first), tuple(picture(point) for point in points))


def _array(x: Tensor) -> np.ndarray:
    return x.float().numpy(force=True)
