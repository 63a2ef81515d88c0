"""Detectors compared by the average precision of their boxes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from glocal.comparison.heads import Headed
from glocal.comparison.measure import Examined
from glocal.comparison.settings import Run
from glocal.heads.detection import detector_spec
from glocal.tasks import DetectObjects
from glocal.tasks.detection import Outcome
from glocal.tasks.matches import Matches, match
from glocal.training import TrainResult

MATCHES = ("image", "place", "label", "score", "right", "neither", "objects")


class Detectors(Headed):
    """Each model the backbone of one kind of detector."""

    assign = DetectObjects
    numbers = ("map", "map50", "map75", "small", "medium", "large", "recall", "mask_map", "threshold")
    lists = ("per_class",)

    def entry(self, run: Run, result: TrainResult) -> dict[str, Any]:
        """Average precision; and the score above which objects are drawn, where F1 at an overlap of 0.5 is best."""
        scores = self._assignment(run.fraction).results(result.outcomes)
        scores = {key: value for key, value in scores.items() if key not in ("classes", "images")}
        found = match_all(result.outcomes, len(self.source.classes))
        return {**scores, "mask_map": scores.get("mask", {}).get("map"), "threshold": found.best_threshold()}

    def predictions(self, outcomes: Sequence[Outcome]) -> dict[str, np.ndarray]:
        """`Matches`, and the boxes and masks of what was found, in their order."""
        matches = match_all(outcomes, len(self.source.classes))
        chosen = [(outcomes[image].found, place) for image, place in zip(matches.image, matches.place, strict=True)]
        boxes = np.array([found.boxes[place] for found, place in chosen], np.float32).reshape(-1, 4)
        saved = {name: getattr(matches, name) for name in MATCHES} | {"boxes": boxes}
        if self.settings.head is not None and detector_spec(self.settings.head.head).masks:
            text = "\n".join(found.masks[place] for found, place in chosen if found.masks is not None)
            saved["masks"] = np.frombuffer(text.encode("ascii"), np.uint8)  # run lengths, which have no line feeds
        return saved

    def examine(self, predictions: Mapping[str, np.ndarray], drawn: np.ndarray) -> Examined:
        """Average precision; of an image alone F1 at an overlap of 0.5, of what is drawn."""
        matches = Matches(**{name: predictions[name] for name in MATCHES})
        score = float(matches.average_precision()[0])
        return Examined(score, matches.average_precision(drawn), matches.f1_of_images(matches.best_threshold()))


def match_all(outcomes: Sequence[Outcome], num_classes: int) -> Matches:
    """Of all test images."""
    return match([one.truth for one in outcomes], [one.found for one in outcomes], num_classes)
