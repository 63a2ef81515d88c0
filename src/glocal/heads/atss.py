"""ATSS: Bridging the Gap Between Anchor-based and Anchor-free Detection, Zhang et al. 2020.

https://arxiv.org/abs/1912.02424
"""

from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import FCOS
from torchvision.ops import box_iou

CANDIDATES = 9  # k of a level, §4.2
ANCHOR_SCALE = 8  # side of an anchor over its stride, §4.1


class ATSS(FCOS):
    """FCOS with samples selected by the IoU statistics of each object ("FCOS w/ ATSS", Tab. 3, "full version").

    Takes the arguments of torchvision's `FCOS`; `center_sampling_radius` is ignored.
    """

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        num_anchors_per_level: list[int],
    ) -> Any:
        """Losses of FCOS's head for the assignment by `assign`."""
        matched = [
            assign(points, target["boxes"], num_anchors_per_level)
            for points, target in zip(anchors, targets, strict=True)
        ]
        return self.head.compute_loss(targets, head_outputs, anchors, matched)


def assign(points: Tensor, boxes: Tensor, num_points_per_level: list[int]) -> Tensor:
    """Assign objects to points (Algorithm 1).

    Candidates of an object are the 9 points of each level nearest to its centre. Its samples are those inside it whose
    anchor has an IoU of at least mean + std over the candidates.

    Args:
        points: (P, 4) boxes around the points of all levels, with the stride as their side.
        boxes: (N, 4) objects.
        num_points_per_level: points of each level; their sum is P.

    Returns:
        (P,) index of the object, or -1; of several the one with the highest IoU.
    """
    if not len(boxes):
        return torch.full((len(points),), -1, dtype=torch.int64, device=points.device)
    centres = (points[:, :2] + points[:, 2:]) / 2
    reach = (points[:, 2:] - points[:, :2]) * ANCHOR_SCALE / 2
    iou = box_iou(torch.cat((centres - reach, centres + reach), dim=1), boxes)  # (P, N)
    distance = torch.cdist(centres, (boxes[:, :2] + boxes[:, 2:]) / 2)

    starts = [sum(num_points_per_level[:i]) for i in range(len(num_points_per_level))]
    nearest = torch.cat(
        [
            start + level.topk(min(CANDIDATES, len(level)), dim=0, largest=False).indices
            for start, level in zip(starts, distance.split(num_points_per_level), strict=True)
        ]
    )  # (candidates, N)
    candidate_iou = iou.gather(0, nearest)
    chosen = candidate_iou >= candidate_iou.mean(0) + candidate_iou.std(0)

    corners = torch.cat((centres[:, None] - boxes[:, :2], boxes[:, 2:] - centres[:, None]), dim=2)
    inside = corners.amin(2) > 0  # (P, N)
    samples = torch.zeros_like(inside).scatter_(0, nearest, chosen) & inside
    best, matched = iou.where(samples, -torch.ones_like(iou)).max(1)
    return matched.where(best >= 0, -torch.ones_like(matched))
