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
    """FCOS whose samples are chosen by the statistics of each object ("FCOS w/ ATSS", Tab. 3, "full version").

    Takes the arguments of torchvision's `FCOS`; `center_sampling_radius` has no use.
    """

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        num_anchors_per_level: list[int],
    ) -> Any:
        """Losses of FCOS's head for what `assign` matches."""
        matched = [
            assign(points, target["boxes"], num_anchors_per_level)
            for points, target in zip(anchors, targets, strict=True)
        ]
        return self.head.compute_loss(targets, head_outputs, anchors, matched)


def assign(points: Tensor, boxes: Tensor, num_points_per_level: list[int]) -> Tensor:
    """The object that each place is to find (Algorithm 1).

    Candidates of an object are the 9 places of each level nearest to its centre. Those whose anchor overlaps it by
    at least the mean and one deviation over the candidates, and which lie inside it, are its samples.

    Args:
        points: (P, 4) boxes around the places of all levels, with the stride as their side.
        boxes: (N, 4) objects.
        num_points_per_level: places in each level; their sum is P.

    Returns:
        (P,) index of an object, or -1; of several the one that the anchor overlaps most.
    """
    if not len(boxes):
        return torch.full((len(points),), -1, dtype=torch.int64, device=points.device)
    centres = (points[:, :2] + points[:, 2:]) / 2
    reach = (points[:, 2:] - points[:, :2]) * ANCHOR_SCALE / 2
    overlap = box_iou(torch.cat((centres - reach, centres + reach), dim=1), boxes)  # (P, N)
    distance = torch.cdist(centres, (boxes[:, :2] + boxes[:, 2:]) / 2)

    starts = [sum(num_points_per_level[:i]) for i in range(len(num_points_per_level))]
    nearest = torch.cat(
        [
            start + level.topk(min(CANDIDATES, len(level)), dim=0, largest=False).indices
            for start, level in zip(starts, distance.split(num_points_per_level), strict=True)
        ]
    )  # (candidates, N)
    overlaps = overlap.gather(0, nearest)
    chosen = overlaps >= overlaps.mean(0) + overlaps.std(0)

    corners = torch.cat((centres[:, None] - boxes[:, :2], boxes[:, 2:] - centres[:, None]), dim=2)
    inside = corners.amin(2) > 0  # (P, N)
    samples = torch.zeros_like(inside).scatter_(0, nearest, chosen) & inside
    best, matched = overlap.where(samples, -torch.ones_like(overlap)).max(1)
    return matched.where(best >= 0, -torch.ones_like(matched))
