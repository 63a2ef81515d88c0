"""Detection and segmentation: what the engine of `glocal.training` trains beside classifiers, measured and applied."""

from glocal.tasks.architecture import Architecture
from glocal.tasks.design import HeadSettings, Transfer, read_options
from glocal.tasks.detection import DetectionBatches, DetectObjects
from glocal.tasks.evaluation import evaluate_detector, evaluate_segmenter
from glocal.tasks.prediction import Summary, predict_images
from glocal.tasks.saved import SavedTaskModel, load_task_model, save_task_model
from glocal.tasks.segmentation import SegmentationBatches, SegmentImages

__all__ = [
    "Architecture",
    "DetectObjects",
    "DetectionBatches",
    "HeadSettings",
    "SavedTaskModel",
    "SegmentImages",
    "SegmentationBatches",
    "Summary",
    "Transfer",
    "evaluate_detector",
    "evaluate_segmenter",
    "load_task_model",
    "predict_images",
    "read_options",
    "save_task_model",
]
