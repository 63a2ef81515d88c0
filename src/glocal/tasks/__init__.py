"""Classification, detection and segmentation: each a `Task`, which every command uses."""

from glocal.tasks.base import Task
from glocal.tasks.classification import ClassificationTask
from glocal.tasks.detection import DetectionTask
from glocal.tasks.evaluation import TASKS, evaluate, task_of
from glocal.tasks.heads import read_options
from glocal.tasks.segmentation import SegmentationTask

__all__ = [
    "TASKS",
    "ClassificationTask",
    "DetectionTask",
    "SegmentationTask",
    "Task",
    "evaluate",
    "read_options",
    "task_of",
]
