"""Training: recipes, budgets, deterministic batches, the loop on its engine, checkpoints, metrics."""

from glocal.training.budget import Budget, training_flop
from glocal.training.checkpoint import Checkpoints, FolderCheckpointIO
from glocal.training.classification import Classification, Normalize
from glocal.training.device import resolve_device
from glocal.training.loader import (
    CACHE_BYTES,
    FeatureBatches,
    ImageBatches,
    TrainingBatches,
    evaluation_loader,
    fit,
    load_pixels,
    training_loader,
)
from glocal.training.loop import TrainResult, predict, train
from glocal.training.metrics import Metrics, Outcomes, score
from glocal.training.pace import CurvePoint, Engine, Keeping, Progress, Stopped, TrainingError
from glocal.training.recipe import DEFAULT_RECIPES, Mode, Recipe, load_recipe, recipe_names

__all__ = [
    "CACHE_BYTES",
    "DEFAULT_RECIPES",
    "Budget",
    "Checkpoints",
    "Classification",
    "CurvePoint",
    "Engine",
    "FeatureBatches",
    "FolderCheckpointIO",
    "ImageBatches",
    "Keeping",
    "Metrics",
    "Mode",
    "Normalize",
    "Outcomes",
    "Progress",
    "Recipe",
    "Stopped",
    "TrainResult",
    "TrainingBatches",
    "TrainingError",
    "evaluation_loader",
    "fit",
    "load_pixels",
    "load_recipe",
    "predict",
    "recipe_names",
    "resolve_device",
    "score",
    "train",
    "training_flop",
    "training_loader",
]
