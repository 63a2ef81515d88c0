"""Names and explanations of the scores of each task."""

from collections.abc import Mapping
from dataclasses import dataclass

from glocal.schema import METRIC_NAMES


@dataclass(frozen=True)
class Words:
    """Texts of a metric.

    Attributes:
        key: of the score in a run's entry: ``top1_mean`` and ``top1_ci`` stand in the summary.
        long: on an axis.
        title: at the beginning of a sentence.
        others: heads of further columns of the leaderboard, by their keys in a run's entry; the summary has means.
        scores: keys of further scores in a run's entry, for the table for spreadsheets; null in a failed run's entry.
        note: explanation of the columns.
        batch: batch size of the throughput.
        by_class: heading of the scores by class.
        counted: heading of the counts by class.
        of_image: name of the score of a single image.
    """

    key: str
    long: str
    title: str
    others: Mapping[str, str]
    scores: tuple[str, ...]
    note: str
    batch: int
    by_class: str
    counted: str
    of_image: str = ""

    @property
    def name(self) -> str:
        """In a sentence, after a number."""
        return METRIC_NAMES[self.key]


WORDS = {
    words.key: words
    for words in (
        Words(
            key="top1",
            long="top-1 accuracy",
            title="Top-1 accuracy",
            others={"top5": "top\u20115", "ece": "ECE"},
            scores=("top5", "ece", "nll"),
            note="ECE: expected calibration error, the difference between confidence and accuracy.",
            batch=32,
            by_class="Accuracy on each class",
            counted="Images of each class",
        ),
        Words(
            key="map",
            long="box AP",
            title="Box AP",
            others={"map50": "AP50", "map75": "AP75", "mask_map": "mask AP"},
            scores=("map50", "map75", "small", "medium", "large", "recall", "mask_map", "threshold"),
            note="AP: average precision as in COCO, the mean over classes and IoU thresholds of 0.5 to 0.95; AP50 "
            "and AP75 at a single one.",
            batch=8,
            by_class="Box AP of each class",
            counted="Objects of each class",
            of_image="F1",
        ),
        Words(
            key="miou",
            long="mIoU",
            title="mIoU",
            others={"pixel_accuracy": "pixel accuracy"},
            scores=("pixel_accuracy", "loss"),
            note="mIoU: intersection over union of predicted and true pixels, the mean over classes.",
            batch=8,
            by_class="IoU of each class",
            counted="Images with each class",
            of_image="mIoU",
        ),
    )
}
