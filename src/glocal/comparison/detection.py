"""Detectors compared by the average precision of their boxes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from glocal.comparison.heads import Headed
from glocal.comparison.measure import Examined
from glocal.comparison.settings import Run
from glocal.heads.detection import detector_spec
from glocal.metrics.coco import Matches, match
from glocal.tasks import DetectObjects
from glocal.tasks.detection import Outcome
from glocal.training.trainer import TrainResult

MATCHES = {"image": "image", "place": "place", "label": "label", "score": "score"}
MATCHES |= {"matched": "right", "ignored": "neither", "objects": "objects"}
"""Attribute of `Matches` -> its key in a published predictions.safetensors, where keys stay as they were."""


class Detectors(Headed):
    """Each model the backbone of one kind of detector."""

    assign = DetectObjects
    numbers = ("map", "map50", "map75", "small", "medium", "large", "recall", "mask_map", "threshold")
    lists = ("per_class",)

    def entry(self, run: Run, result: TrainResult) -> dict[str, Any]:
        """Average precision; and the score threshold for drawing, with the best F1 at an IoU of 0.5."""
        scores = self._assignment(run.fraction).results(result.outcomes)
        scores = {key: value for key, value in scores.items() if key not in ("classes", "images")}
        found = match_all(result.outcomes, len(self.source.classes))
        return {**scores, "mask_map": scores.get("mask", {}).get("map"), "threshold": found.best_threshold()}

    def predictions(self, outcomes: Sequence[Outcome]) -> dict[str, np.ndarray]:
        """`Matches`, and the detected boxes and masks in their order."""
        matches = match_all(outcomes, len(self.source.classes))
        chosen = [(outcomes[image].found, place) for image, place in zip(matches.image, matches.place, strict=True)]
        boxes = np.array([found.boxes[place] for found, place in chosen], np.float32).reshape(-1, 4)
        saved = {key: getattr(matches, name) for name, key in MATCHES.items()} | {"boxes": boxes}
        if self.settings.head is not None and detector_spec(self.settings.head.head).masks:
            text = "\n".join(found.masks[place] for found, place in chosen if found.masks is not None)
            saved["masks"] = np.frombuffer(text.encode("ascii"), np.uint8)  # run lengths, which have no line feeds
        return saved

    def examine(self, predictions: Mapping[str, np.ndarray], drawn: np.ndarray) -> Examined:
        """Average precision; of a single image the F1 at an IoU of 0.5 and the threshold for drawing."""
        matches = Matches(**{name: predictions[key] for name, key in MATCHES.items()})
        score = float(matches.average_precision()[0])
        return Examined(score, matches.average_precision(drawn), matches.f1_of_images(matches.best_threshold()))


def match_all(outcomes: Sequence[Outcome], num_classes: int) -> Matches:
    """Of all test images."""
    return match([one.truth for one in outcomes], [one.found for one in outcomes], num_classes)
