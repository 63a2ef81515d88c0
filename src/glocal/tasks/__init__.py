"""Detection and segmentation: what the engine of `glocal.training` trains beside classifiers, measured and applied."""

from glocal.tasks.design import BackboneWeights, HeadSettings, read_options
from glocal.tasks.detection import DetectionBatches, DetectObjects
from glocal.tasks.evaluation import evaluate_detector, evaluate_segmenter
from glocal.tasks.prediction import Summary, predict_images
from glocal.tasks.segmentation import SegmentationBatches, SegmentImages

__all__ = [
    "BackboneWeights",
    "DetectObjects",
    "DetectionBatches",
    "HeadSettings",
    "SegmentImages",
    "SegmentationBatches",
    "Summary",
    "evaluate_detector",
    "evaluate_segmenter",
    "predict_images",
    "read_options",
]
