"""Detection and segmentation heads on a backbone's `feature_info`, independent of its name."""

from glocal.heads.detection import Detector, create_detector
from glocal.heads.pyramid import PyramidAdapter
from glocal.heads.segmentation import create_segmenter

__all__ = ["Detector", "PyramidAdapter", "create_detector", "create_segmenter"]
