"""Images of rectangles with their detection targets, and small models on them."""

from typing import Any

import timm
import torch
from torch import Tensor, nn

from glocal.heads import create_detector

RESNET = {"stem_stride": 4, "depths": (1, 1, 1, 1), "widths": (8, 8, 16, 16), "img_size": 64}

TINY = {
    "min_size": 64, "max_size": 64, "channels": 32, "hidden": 32, "rpn_pre_nms_top_n_train": 50,
    "rpn_post_nms_top_n_train": 20, "rpn_pre_nms_top_n_test": 50, "rpn_post_nms_top_n_test": 20,
    "box_batch_size_per_image": 16,
}  # fmt: skip
TINY_ONE_STAGE = {"min_size": 64, "max_size": 64, "channels": 64}
TINY_DETR: dict[str, Any] = {
    "min_size": 64, "max_size": 64, "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 8,
}  # fmt: skip


def keywords(kind: str) -> dict[str, Any]:
    """What makes a detector of this kind as small as it can be."""
    if kind == "rt_detr":
        return TINY_DETR | {"encoder_hidden_dim": 32, "decoder_in_channels": [32] * 3}
    if "detr" in kind:
        return TINY_DETR
    return TINY if "rcnn" in kind else TINY_ONE_STAGE


def tiny(kind: str, num_classes: int = 3, **kwargs: Any) -> nn.Module:
    """A detector of some 10 000 weights on a small ResNet."""
    backbone = {"norm": "batch", "backbone_kwargs": RESNET}
    return create_detector(
        kind, "resnet_micro", num_classes, preset="small", **{**keywords(kind), **backbone, **kwargs}
    )


def extractor(name: str = "resnet_micro", **kwargs: Any) -> nn.Module:
    return timm.create_model(name, features_only=True, **{**RESNET, **kwargs})


def scene(height: int = 64, width: int = 64, count: int = 2, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """A noisy image and ``count`` rectangles of three classes on it, each in its class's colour."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(3, height, width, generator=generator) * 0.3
    limits = torch.tensor([width, height, width, height])
    corner = torch.rand(count, 2, generator=generator) * limits[:2] * 0.6
    side = 6 + torch.rand(count, 2, generator=generator) * limits[:2] * 0.35
    boxes = torch.minimum(torch.cat((corner, corner + side), dim=1), limits).round()
    labels = torch.arange(count) % 3
    masks = torch.zeros(count, height, width, dtype=torch.bool)
    for mask, label, (x0, y0, x1, y1) in zip(masks, labels, boxes.long().tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
        image[label, y0:y1, x0:x1] += 0.7
    return image.clamp(max=1), {"boxes": boxes, "labels": labels, "masks": masks}
