"""Training: recipes, budgets, deterministic batches, the loop on its engine, metrics."""

from glocal.training.budget import Budget, training_flop
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
from glocal.training.loop import CurvePoint, Normalize, Progress, TrainingError, TrainResult, predict, train
from glocal.training.metrics import Metrics, confident_mistakes, score
from glocal.training.recipe import DEFAULT_RECIPES, Mode, Recipe, load_recipe

__all__ = [
    "CACHE_BYTES",
    "DEFAULT_RECIPES",
    "Budget",
    "CurvePoint",
    "FeatureBatches",
    "ImageBatches",
    "Metrics",
    "Mode",
    "Normalize",
    "Progress",
    "Recipe",
    "TrainResult",
    "TrainingBatches",
    "TrainingError",
    "confident_mistakes",
    "evaluation_loader",
    "fit",
    "load_pixels",
    "load_recipe",
    "predict",
    "score",
    "train",
    "training_flop",
    "training_loader",
]
