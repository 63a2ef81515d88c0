"""Training: recipes, budgets, deterministic batches, checkpoints; the loop is in `glocal.training.trainer`."""

from glocal.training.budget import Budget, training_flop
from glocal.training.checkpoint import Checkpointer
from glocal.training.config import DEFAULT_RECIPES, HeadConfig, Mode, TrainConfig, load_recipe, recipe_names
from glocal.training.errors import Stopped, TrainingError
from glocal.training.evaluation import predict
from glocal.training.hardware import HardwareConfig, resolve_device
from glocal.training.loader import (
    CACHE_BYTES,
    FeatureBatches,
    ImageBatches,
    TrainingBatches,
    evaluation_loader,
    load_pixels,
    training_loader,
)
from glocal.training.train_state import CurvePoint, Progress

__all__ = [
    "CACHE_BYTES",
    "DEFAULT_RECIPES",
    "Budget",
    "Checkpointer",
    "CurvePoint",
    "FeatureBatches",
    "HardwareConfig",
    "HeadConfig",
    "ImageBatches",
    "Mode",
    "Progress",
    "Stopped",
    "TrainConfig",
    "TrainingBatches",
    "TrainingError",
    "evaluation_loader",
    "load_pixels",
    "load_recipe",
    "predict",
    "recipe_names",
    "resolve_device",
    "training_flop",
    "training_loader",
]
