"""Settings of detectors and segmenters for users and files: kinds, presets, sizes, options and their ranges, by task.

They are closed lists and ranges, because files are untrusted.
"""

from typing import Any

from glocal.errors import nearest, short
from glocal.heads.detection import KINDS as DETECTORS
from glocal.heads.detection import PRESETS as DETECTOR_PRESETS
from glocal.heads.segmentation import KINDS as SEGMENTERS
from glocal.heads.segmentation import PRESETS as SEGMENTER_PRESETS

HEADS: dict[str, tuple[str, ...]] = {"detection": DETECTORS, "segmentation": SEGMENTERS}
PRESETS = {"detection": tuple(DETECTOR_PRESETS), "segmentation": tuple(SEGMENTER_PRESETS)}
PUBLISHED = {"detection": "coco", "segmentation": "ade20k"}
"""The preset of the published settings."""
UNNAMED = {"detection": (), "segmentation": ("",)}
"""Segmenters saved before presets existed: an empty name means the published preset."""
NORMS = ("batch", "frozen")
IMAGE_SIZES = range(32, 2049)
MAX_CLASSES = {"detection": 100_000, "segmentation": 255}
"""Label maps are 8-bit, and 255 is the ignored label."""
OPTIONS: dict[str, dict[str, tuple[float, float]]] = {
    "detection": {
        "channels": (8, 1024), "hidden": (8, 4096), "anchor_size": (2, 512), "box_detections_per_img": (1, 1000),
        "detections_per_img": (1, 1000), "box_score_thresh": (0, 1), "score_thresh": (0, 1), "num_queries": (1, 1000),
        "d_model": (8, 1024), "encoder_layers": (1, 12), "decoder_layers": (1, 12),
    },
    "segmentation": {"dim": (8, 1024), "head_dim": (8, 1024), "drop_rate": (0, 0.9)},
}  # fmt: skip
"""Keywords of heads, and their ranges."""
FRACTIONS = ("box_score_thresh", "score_thresh", "drop_rate")
"""Options with fractional values."""


def option_fault(task: str, key: Any, value: Any) -> str | None:
    """Why a keyword of a head is invalid, or None."""
    known = OPTIONS[task]
    if key not in known:
        return f"unknown keyword {short(key)} for {task}{nearest(str(key)[:100], known)}"
    low, high = known[key]
    number, kind = (int | float, "a number") if key in FRACTIONS else (int, "a whole number")
    if isinstance(value, bool) or not isinstance(value, number) or not low <= value <= high:  # NaN compares as false
        return f"{key}: expected {kind} from {low:g} to {high:g}, got {short(value)}"
    return None
