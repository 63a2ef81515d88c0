"""Detectors compared by box AP."""

from collections.abc import Mapping, Sequence

import numpy as np

from glocal.comparison.heads import Examined, HeadMetric, draws
from glocal.metrics.coco import Matches, match
from glocal.schema import RunScores
from glocal.tasks import DetectionTask, Task
from glocal.tasks.detection import Outcome

MATCHES = {"image": "image", "place": "place", "label": "label", "score": "score"}
MATCHES |= {"matched": "right", "ignored": "neither", "objects": "objects"}
"""Attribute of `Matches` -> its key in a published predictions.safetensors, where keys stay as they were."""


class BoxAP(HeadMetric):
    """COCO's average precision of boxes."""

    key = DetectionTask.metric
    lists = ("per_class", "curve")

    def entry(self, task: Task, outcomes: Sequence[Outcome]) -> RunScores:
        """Average precision, and the score threshold for drawn detections, which maximizes F1 at an IoU of 0.5."""
        scores = super().entry(task, outcomes)
        threshold = match_all(outcomes, len(task.classes)).best_threshold()
        mask = scores.get("mask")
        return {**scores, "mask_map": None if mask is None else mask["map"], "threshold": threshold}

    def predictions(self, task: Task, outcomes: Sequence[Outcome]) -> dict[str, np.ndarray]:
        """`Matches`, and the boxes and masks of the detections, in their order."""
        matches = match_all(outcomes, len(task.classes))
        chosen = [
            (outcomes[image].detections, place) for image, place in zip(matches.image, matches.place, strict=True)
        ]
        boxes = np.array([of.boxes[place] for of, place in chosen], np.float32).reshape(-1, 4)
        saved = {key: getattr(matches, name) for name, key in MATCHES.items()} | {"boxes": boxes}
        assert isinstance(task, DetectionTask)
        if task.masks:
            text = "\n".join(of.masks[place] for of, place in chosen if of.masks is not None)
            saved["masks"] = np.frombuffer(text.encode("ascii"), np.uint8)  # run lengths, which have no line feeds
        return saved

    def evidence(self, predictions: Mapping[str, np.ndarray]) -> Examined:
        """Average precision; for single images, F1 of the drawn detections at an IoU of 0.5."""
        matches = Matches(**{name: predictions[key] for name, key in MATCHES.items()})
        drawn = draws(len(matches.objects))
        score = float(matches.average_precision()[0])
        return Examined(score, matches.average_precision(drawn), matches.f1_of_images(matches.best_threshold()))


def match_all(outcomes: Sequence[Outcome], num_classes: int) -> Matches:
    """Matches on all validation images."""
    return match([one.targets for one in outcomes], [one.detections for one in outcomes], num_classes)
