"""Cascade R-CNN: Delving into High Quality Object Detection, Cai & Vasconcelos 2018. https://arxiv.org/abs/1712.00726

Three box heads, each on the boxes of the previous one. With masks, one mask head on the boxes of the last, as in
detectron2 ("Cascade Mask R-CNN"); the authors' journal version and mmdetection have one per stage.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_inference, maskrcnn_loss
from torchvision.ops import clip_boxes_to_image

# IoU threshold of positive boxes, weights of the box deltas, weight of the loss (§4.2, 5.1)
STAGES = (
    (0.5, (10.0, 10.0, 5.0, 5.0), 1.0),
    (0.6, (20.0, 20.0, 10.0, 10.0), 0.5),
    (0.7, (30.0, 30.0, 15.0, 15.0), 0.25),
)


class Predictor(nn.Module):
    """Class logits, and class-agnostic box deltas (§5.1), in the layout of torchvision's predictor."""

    def __init__(self, hidden: int, num_classes: int):
        super().__init__()
        self.cls_score = nn.Linear(hidden, num_classes)
        self.bbox_pred = nn.Linear(hidden, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(R, hidden) -> (R, num_classes) logits, (R, 4 num_classes) deltas."""
        logits = self.cls_score(x)
        return logits, self.bbox_pred(x).repeat(1, logits.shape[1])


class CascadeRoIHeads(RoIHeads):
    """Torchvision's RoI heads with a cascade of box heads (Fig. 3d).

    Args:
        heads: of Faster or Mask R-CNN; their pooling, sampling, thresholds and mask head are reused.
        num_classes: with the background.
        in_features: of a pooled box, flattened.
        hidden: units of each box head.
    """

    def __init__(self, heads: RoIHeads, num_classes: int, in_features: int, hidden: int):
        sampler = heads.fg_bg_sampler
        super().__init__(
            heads.box_roi_pool, nn.Identity(), nn.Identity(),
            0.5, 0.5, sampler.batch_size_per_image, sampler.positive_fraction, None,
            heads.score_thresh, heads.nms_thresh, heads.detections_per_img,
            heads.mask_roi_pool, heads.mask_head, heads.mask_predictor,
        )  # fmt: skip
        self.box_heads = nn.ModuleList(TwoMLPHead(in_features, hidden) for _ in STAGES)
        self.box_predictors = nn.ModuleList(Predictor(hidden, num_classes) for _ in STAGES)

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """As `RoIHeads.forward`: levels and proposals -> predictions, losses; losses are named by stage."""
        losses: dict[str, Tensor] = {}
        scores: list[Tensor] = []
        logits = deltas = torch.empty(0)
        matched: list[Tensor] = []
        labels: list[Tensor] = []
        boxes = proposals
        for i, (iou, weights, weight) in enumerate(STAGES):
            self.box_coder = BoxCoder(weights)
            proposals = boxes
            if self.training:
                self.proposal_matcher = Matcher(iou, iou, allow_low_quality_matches=False)
                proposals, matched, labels, wanted = self.select_training_samples(proposals, targets)
            pooled = self.box_roi_pool(features, proposals, image_shapes)
            logits, deltas = self.box_predictors[i](self.box_heads[i](pooled))
            scores.append(logits.softmax(-1))
            if self.training:
                classification, regression = fastrcnn_loss(logits, deltas, labels, wanted)
                losses[f"loss_classifier_{i + 1}"] = weight * classification
                losses[f"loss_box_reg_{i + 1}"] = weight * regression
            boxes = self._moved(deltas.detach()[:, :4], proposals, image_shapes)

        result: list[dict[str, Tensor]] = []
        if not self.training:
            # the mean of the three heads' probabilities, on the boxes of the last (§5.1)
            detections = self.postprocess_detections(torch.stack(scores).mean(0).log(), deltas, proposals, image_shapes)
            result = [
                dict(zip(("boxes", "scores", "labels"), image, strict=True)) for image in zip(*detections, strict=True)
            ]
        if self.has_mask():
            self._masks(features, proposals, image_shapes, targets, matched, labels, result, losses)
        return result, losses

    def _moved(self, deltas: Tensor, boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> list[Tensor]:
        moved = self.box_coder.decode(deltas, boxes).reshape(-1, 4).split([len(one) for one in boxes])
        return [clip_boxes_to_image(one, shape) for one, shape in zip(moved, image_shapes, strict=True)]

    def _masks(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Any,
        matched: list[Tensor],
        labels: list[Tensor],
        result: list[dict[str, Tensor]],
        losses: dict[str, Tensor],
    ) -> None:
        """Add masks to the predictions, or their loss to the losses."""
        if self.training:
            positive = [one > 0 for one in labels]
            proposals = [boxes[keep] for boxes, keep in zip(proposals, positive, strict=True)]
        else:
            proposals = [detections["boxes"] for detections in result]
        pooled = self.mask_roi_pool(features, proposals, image_shapes)
        logits = self.mask_predictor(self.mask_head(pooled))
        if self.training:
            masks, classes = [t["masks"] for t in targets], [t["labels"] for t in targets]
            matched = [index[keep] for index, keep in zip(matched, positive, strict=True)]
            losses["loss_mask"] = maskrcnn_loss(logits, proposals, masks, classes, matched)
            return
        for detections, mask in zip(result, maskrcnn_inference(logits, [f["labels"] for f in result]), strict=True):
            detections["masks"] = mask
