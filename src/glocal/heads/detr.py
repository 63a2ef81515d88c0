"""DETR and its successors on any backbone, from transformers.

DETR: End-to-End Object Detection with Transformers, Carion et al. 2020. https://arxiv.org/abs/2005.12872
Deformable DETR, Zhu et al. 2021. https://arxiv.org/abs/2010.04159
RT-DETR: DETRs Beat YOLOs on Real-time Object Detection, Zhao et al. 2024. https://arxiv.org/abs/2304.08069
"""

import copy
import dataclasses
import re
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import box_convert, clip_boxes_to_image
from transformers import (
    AutoBackbone,
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DetrConfig,
    DetrForObjectDetection,
    PreTrainedConfig,
    PreTrainedModel,
    RTDetrConfig,
    RTDetrForObjectDetection,
)
from transformers.modeling_outputs import BackboneOutput

from glocal.heads.backbone import check_keywords
from glocal.heads.norm import regroup
from glocal.heads.pyramid import PyramidAdapter
from glocal.heads.transform import AnyAspectRatio

# Loss weights. RT-DETR's losses are already weighted. Deformable DETR doubles the classification (§A.4).
WEIGHTS = {
    "detr": {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0},
    "deformable_detr": {"loss_ce": 2.0, "loss_bbox": 5.0, "loss_giou": 2.0},
    "rt_detr": {"loss_vfl": 1.0, "loss_bbox": 1.0, "loss_giou": 1.0},
}

# Paper settings that differ from transformers' defaults: in Deformable DETR, losses on every decoder layer and the
# class cost of the matching (§A.4).
PUBLISHED: dict[str, dict[str, Any]] = {
    "detr": {},
    "deformable_detr": {"auxiliary_loss": True, "class_cost": 2},
    "rt_detr": {},
}


class _LevelsConfig(PreTrainedConfig):
    """Channels of the maps, for transformers."""

    model_type = "glocal_levels"
    channels: list[int] | None = None


class _BackbonePlaceholder(PreTrainedModel):
    """Placeholder for transformers' backbone, replaced by the pyramid in `create_detr`.

    So any module can be the backbone, and transformers neither initialises nor freezes any of it.
    """

    config_class = _LevelsConfig

    def __init__(self, config: _LevelsConfig):
        super().__init__(config)
        self.channels = config.channels


AutoBackbone.register(_LevelsConfig, _BackbonePlaceholder)


class Detr(DetrForObjectDetection):
    """Transformers' DETR with the paper's auxiliary losses on every decoder layer (§A.2).

    With ``auxiliary_loss=True``, transformers (4 to 5.23) feeds every layer the normalised output of the previous one,
    and normalises the last twice, unlike the released network.
    """

    def __init__(self, config: DetrConfig):
        super().__init__(config)
        self.loss_type = "ForObjectDetection"  # transformers chooses it by the class name
        self.every_layer = copy.copy(config)
        self.every_layer.auxiliary_loss = True

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None, labels: Any = None) -> Any:
        """As `DetrForObjectDetection.forward`."""
        if labels is None:
            return super().forward(pixel_values, pixel_mask)
        outputs: list[Tensor] = []
        decoder = self.model.decoder
        hooks = [layer.register_forward_hook(lambda _, __, out: outputs.append(out)) for layer in decoder.layers]
        try:
            out = super().forward(pixel_values, pixel_mask)
        finally:
            for hook in hooks:
                hook.remove()
        states = decoder.layernorm(torch.stack(outputs))  # (layers, B, Q, C)
        logits, boxes = self.class_labels_classifier(states), self.bbox_predictor(states).sigmoid()
        out.loss, out.loss_dict, _ = self.loss_function(
            out.logits, labels, logits.device, out.pred_boxes, self.every_layer, logits, boxes
        )
        return out


class Maps(nn.Module):
    """A pyramid with transformers' backbone interface."""

    def __init__(self, pyramid: PyramidAdapter):
        super().__init__()
        self.pyramid = pyramid
        self.channels = pyramid.channels

    def forward(self, pixel_values: Tensor) -> BackboneOutput:
        """(B, 3, H, W) -> one (B, channels[i], h, w) map per level."""
        return BackboneOutput(feature_maps=tuple(self.pyramid(pixel_values)))


NETWORKS: dict[str, tuple[Any, Any]] = {
    "detr": (DetrConfig, Detr),
    "deformable_detr": (DeformableDetrConfig, DeformableDetrForObjectDetection),
    "rt_detr": (RTDetrConfig, RTDetrForObjectDetection),
}


class DetrNetwork(nn.Module):
    """Images and targets -> losses or predictions, as torchvision's detectors; labels from 0.

    Args:
        kind: "detr", "deformable_detr" or "rt_detr".
        model: of transformers.
        transform: normalises, resizes and pads images, and resizes boxes.
        detections_per_img: maximum number of predictions per image.
    """

    def __init__(self, kind: str, model: nn.Module, transform: GeneralizedRCNNTransform, detections_per_img: int = 100):
        super().__init__()
        self.weights = WEIGHTS[kind]
        self.softmax = kind == "detr"  # with one more class for "no object"; the others have a sigmoid per class
        self.padded_units = kind == "rt_detr"  # takes no padding mask, so its boxes are relative to the padded image
        self.model = model
        self.transform = transform
        self.detections_per_img = detections_per_img

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """As `Detector.forward`."""
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        if targets is not None:  # only boxes are used and resized
            targets = [{"boxes": target["boxes"], "labels": target["labels"]} for target in targets]
        batch, targets = self.transform(images, targets)
        inside = batch.tensors.new_zeros((len(images), *batch.tensors.shape[-2:]), dtype=torch.long)
        for mask, (height, width) in zip(inside, batch.image_sizes, strict=True):
            mask[:height, :width] = 1
        units = self._units(batch)
        if targets is None:
            out = self.model(pixel_values=batch.tensors, pixel_mask=inside)
            detections = self._to_detections(out.logits, out.pred_boxes, units, batch.image_sizes)
            return self.transform.postprocess(detections, batch.image_sizes, sizes)
        wanted = [
            {"class_labels": target["labels"], "boxes": box_convert(target["boxes"], "xyxy", "cxcywh") / unit}
            for target, unit in zip(targets, units, strict=True)
        ]
        return self._losses(self.model(pixel_values=batch.tensors, pixel_mask=inside, labels=wanted).loss_dict)

    def _units(self, batch: ImageList) -> list[Tensor]:
        padded = (batch.tensors.shape[-2], batch.tensors.shape[-1])
        sizes = [padded] * len(batch.image_sizes) if self.padded_units else batch.image_sizes
        return [batch.tensors.new_tensor([width, height, width, height]) for height, width in sizes]

    def _losses(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of all decoder layers (loss_ce, loss_ce_0, ...), weighted and summed by their name."""
        losses = {}
        for name, weight in self.weights.items():
            same = [part for key, part in parts.items() if re.fullmatch(rf"{name}(_\w+)?", key)]
            losses[name] = weight * torch.stack(same).sum()
        return losses

    def _to_detections(
        self, logits: Tensor, boxes: Tensor, units: list[Tensor], sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """(B, Q, K) logits and (B, Q, 4) boxes -> the best pairs of query and class; with softmax one per query."""
        if self.softmax:
            scores, labels = logits.softmax(-1)[..., :-1].max(-1)  # (B, Q)
            queries = torch.arange(logits.shape[1], device=logits.device).expand_as(scores)
        else:
            scores = logits.sigmoid().flatten(1)  # (B, QK)
            pairs = torch.arange(scores.shape[1], device=logits.device).expand_as(scores)
            queries, labels = pairs // logits.shape[2], pairs % logits.shape[2]
        detections = []
        for i, (unit, size) in enumerate(zip(units, sizes, strict=True)):
            best = scores[i].topk(min(self.detections_per_img, scores.shape[1])).indices
            corners = box_convert(boxes[i, queries[i, best]], "cxcywh", "xyxy") * unit
            corners = clip_boxes_to_image(corners, size)
            detections.append({"boxes": corners, "scores": scores[i, best], "labels": labels[i, best]})
        return detections


def create_detr(
    kind: str,
    backbone: nn.Module,
    num_classes: int,
    *,
    strides: tuple[int, ...],
    image_mean: list[float],
    image_std: list[float],
    min_size: int = 800,
    max_size: int = 1333,
    fixed_size: tuple[int, int] | None = None,
    detections_per_img: int = 100,
    **kwargs: Any,
) -> DetrNetwork:
    """One of `NETWORKS` on the maps of a backbone; use `create_detector`.

    Args:
        kind: "detr", "deformable_detr" or "rt_detr".
        backbone: image -> maps.
        num_classes: of objects.
        strides: of the maps; DETR uses the last.
        image_mean: for normalisation.
        image_std: for normalisation.
        min_size: of the shorter side of the resized image, in pixels.
        max_size: of the longer side.
        fixed_size: width and height of every resized image, instead of both.
        detections_per_img: maximum number of predictions per image.
        kwargs: of transformers' configuration.
    """
    make_config, make_model = NETWORKS[kind]
    check_keywords(kind, kwargs, create_detr, more=(field.name for field in dataclasses.fields(make_config)))
    pyramid = PyramidAdapter(backbone, strides=strides)
    wired: dict[str, Any] = {}
    if kind == "rt_detr":
        wired |= {"encoder_in_channels": pyramid.channels, "feat_strides": list(strides)}
        wired |= {"num_feature_levels": len(strides), "encode_proj_layers": [len(strides) - 1]}
        wired |= {"freeze_backbone_batch_norms": False}
    if kind == "deformable_detr":
        wired |= {"disable_custom_kernels": True}
    levels = _LevelsConfig(channels=pyramid.channels)
    config = make_config(backbone_config=levels, num_labels=num_classes, **{**PUBLISHED[kind], **wired, **kwargs})
    model = make_model(config)
    if kind == "deformable_detr":
        regroup(model.model.input_proj)
    model.model.backbone.model = Maps(pyramid)
    transform = AnyAspectRatio(min_size, max_size, image_mean, image_std, fixed_size=fixed_size)
    return DetrNetwork(kind, model, transform, detections_per_img)
