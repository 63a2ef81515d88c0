"""ATSS's samples against a loop over its Algorithm 1, and the cascade's stages."""

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from glocal.heads.atss import assign
from glocal.heads.cascade import STAGES
from tests.heads.scenes import scene, tiny


def places(size: int = 256, strides: tuple[int, ...] = (8, 16, 32, 64, 128)):
    generator = AnchorGenerator([[s] for s in strides], [[1.0]] * len(strides))
    maps = [torch.zeros(1, 1, size // s, size // s) for s in strides]
    (points,) = generator(ImageList(torch.zeros(1, 3, size, size), [(size, size)]), maps)
    return points, [m.numel() for m in maps]


def by_the_book(points, boxes, counts):
    """Algorithm 1 of Zhang et al. 2020, line by line."""
    matched, held = [-1] * len(points), [-1.0] * len(points)
    centres = [((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0) for x0, y0, x1, y1 in points.tolist()]
    for g, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        candidates, start = [], 0
        for count in counts:
            level = range(start, start + count)
            distance = {i: (centres[i][0] - (x0 + x1) / 2) ** 2 + (centres[i][1] - (y0 + y1) / 2) ** 2 for i in level}
            candidates += sorted(level, key=lambda i: (distance[i], i))[:9]
            start += count
        overlaps = []
        for i in candidates:
            x, y, side = centres[i]
            anchor = torch.tensor([[x - 4 * side, y - 4 * side, x + 4 * side, y + 4 * side]])
            overlaps.append(float(box_iou(anchor, boxes[g : g + 1])))
        mean = sum(overlaps) / len(overlaps)
        deviation = (sum((o - mean) ** 2 for o in overlaps) / (len(overlaps) - 1)) ** 0.5
        for i, overlap in zip(candidates, overlaps, strict=True):
            x, y, _ = centres[i]
            if overlap >= mean + deviation and x0 < x < x1 and y0 < y < y1 and overlap > held[i]:
                matched[i], held[i] = g, overlap
    return torch.tensor(matched)


@pytest.mark.parametrize("seed", range(8))
def test_atss_by_the_book(seed):
    points, counts = places()
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(6, 2, generator=generator) * 100
    boxes = torch.cat((corner, corner + 10 + torch.rand(6, 2, generator=generator) * 140), dim=1)
    got = assign(points, boxes, counts)
    assert (got >= 0).any()
    assert torch.equal(got, by_the_book(points, boxes, counts))


def test_atss_without_objects():
    points, counts = places()
    assert (assign(points, torch.zeros(0, 4), counts) == -1).all()


def test_a_cascade_asks_for_more_overlap_at_every_stage():
    torch.manual_seed(0)
    model = tiny("cascade_rcnn", box_detections_per_img=5, box_score_thresh=0.2)
    heads = model.network.roi_heads
    assert (heads.score_thresh, heads.detections_per_img) == (0.2, 5)
    seen = []
    choose = heads.select_training_samples

    def watched(proposals, targets):
        seen.append((heads.proposal_matcher.high_threshold, heads.box_coder.weights, [p.clone() for p in proposals]))
        return choose(proposals, targets)

    heads.select_training_samples = watched
    image, target = scene()
    losses = model([image], [target])
    assert [(overlap, weights) for overlap, weights, _ in seen] == [stage[:2] for stage in STAGES]
    assert not torch.equal(seen[0][2][0][:5], seen[1][2][0][:5])  # each on the boxes of the one before
    assert {f"loss_classifier_{i}" for i in (1, 2, 3)} < set(losses)


def test_a_cascade_moves_boxes_by_its_deltas():
    """Deltas of every stage that say "wider by e^0.2 / weight", and the boxes grow that much."""
    torch.manual_seed(0)
    model = tiny("cascade_rcnn", box_score_thresh=0.0, box_nms_thresh=1.0).eval()
    heads = model.network.roi_heads
    with torch.no_grad():
        for predictor in heads.box_predictors:
            predictor.bbox_pred.weight.zero_()
            predictor.bbox_pred.bias.copy_(torch.tensor([0.0, 0, 1.0, 0]))
            predictor.cls_score.weight.zero_()
            predictor.cls_score.bias.copy_(torch.tensor([0.0, 5.0, 0.0, 0.0]))
        features = model.network.backbone(torch.randn(1, 3, 64, 64))
        ((found,), _) = heads(features, [torch.tensor([[20.0, 20, 40, 30]])], [(64, 64)])
    best = found["boxes"][found["scores"].argmax()]
    grown = 20 * torch.tensor(sum(1 / weights[2] for _, weights, _ in STAGES)).exp()
    assert torch.allclose(best[2] - best[0], grown, atol=1e-3)
    assert torch.allclose(best[3] - best[1], torch.tensor(10.0), atol=1e-3)
    assert found["scores"].max() == pytest.approx(float(torch.tensor([0.0, 5, 0, 0]).softmax(0)[1]), abs=1e-5)
