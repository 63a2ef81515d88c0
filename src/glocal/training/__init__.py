"""Training: recipes, budgets, deterministic batches, checkpoints; the loop is in `glocal.training.trainer`."""

from glocal.training.budget import Budget
from glocal.training.checkpoint import Checkpointer
from glocal.training.config import DEFAULT_RECIPES, HeadConfig, Mode, TrainConfig, load_recipe, recipe_names
from glocal.training.errors import Stopped, TrainingError
from glocal.training.evaluation import predict
from glocal.training.hardware import HardwareConfig, resolve_device
from glocal.training.loader import (
    ImageBatches,
    TrainingBatches,
    load_pixels,
    training_loader,
)
from glocal.training.train_state import CurvePoint, TrainingProgress

__all__ = [
    "DEFAULT_RECIPES",
    "Budget",
    "Checkpointer",
    "CurvePoint",
    "HardwareConfig",
    "HeadConfig",
    "ImageBatches",
    "Mode",
    "Stopped",
    "TrainConfig",
    "TrainingBatches",
    "TrainingError",
    "TrainingProgress",
    "load_pixels",
    "load_recipe",
    "predict",
    "recipe_names",
    "resolve_device",
    "training_loader",
]
