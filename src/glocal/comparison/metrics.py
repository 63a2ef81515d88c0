"""The metric of each task."""

from collections.abc import Mapping

from glocal.comparison.classification import Top1
from glocal.comparison.detection import BoxAP
from glocal.comparison.metric import Metric
from glocal.comparison.segmentation import MeanIoU

TOP1 = Top1()
METRICS: Mapping[str, Metric] = {"classification": TOP1, "detection": BoxAP(), "segmentation": MeanIoU()}
"""By task."""
