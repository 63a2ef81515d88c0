"""Training: recipes, budgets, deterministic batches, the loop on its engine, checkpoints."""

from glocal.training.architecture import parse_model, spell_model, split_models
from glocal.training.budget import Budget, training_flop
from glocal.training.checkpoint import Checkpoints, FolderCheckpointIO
from glocal.training.classification import Classification
from glocal.training.creation import (
    check_model,
    create,
    default_image_size,
    freeze,
    has_weights,
    heads,
    model_args,
    normalisation,
    resolve_device,
)
from glocal.training.loader import (
    CACHE_BYTES,
    FeatureBatches,
    ImageBatches,
    TrainingBatches,
    evaluation_loader,
    load_pixels,
    training_loader,
)
from glocal.training.loop import TrainResult, predict, train
from glocal.training.pace import CurvePoint, Engine, Keeping, Progress, Stopped, TrainingError
from glocal.training.recipe import DEFAULT_RECIPES, Mode, Recipe, load_recipe, recipe_names
from glocal.training.saved import SavedModel, load_model, save_model

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
    "Mode",
    "Progress",
    "Recipe",
    "SavedModel",
    "Stopped",
    "TrainResult",
    "TrainingBatches",
    "TrainingError",
    "check_model",
    "create",
    "default_image_size",
    "evaluation_loader",
    "freeze",
    "has_weights",
    "heads",
    "load_model",
    "load_pixels",
    "load_recipe",
    "model_args",
    "normalisation",
    "parse_model",
    "predict",
    "recipe_names",
    "resolve_device",
    "save_model",
    "spell_model",
    "split_models",
    "train",
    "training_flop",
    "training_loader",
]
