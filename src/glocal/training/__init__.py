"""Training: recipes, budgets, deterministic batches, checkpoints; the loop is in `glocal.training.trainer`."""

from glocal.training.architecture import parse_model, spell_model, split_models
from glocal.training.budget import Budget, training_flop
from glocal.training.checkpoint import Checkpointer
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
from glocal.training.errors import Stopped, TrainingError
from glocal.training.evaluation import predict
from glocal.training.hardware import Hardware
from glocal.training.loader import (
    CACHE_BYTES,
    FeatureBatches,
    ImageBatches,
    TrainingBatches,
    evaluation_loader,
    load_pixels,
    training_loader,
)
from glocal.training.recipe import DEFAULT_RECIPES, Mode, Recipe, load_recipe, recipe_names
from glocal.training.saved import SavedModel, load_model, save_model
from glocal.training.train_state import CurvePoint, Progress

__all__ = [
    "CACHE_BYTES",
    "DEFAULT_RECIPES",
    "Budget",
    "Checkpointer",
    "Classification",
    "CurvePoint",
    "FeatureBatches",
    "Hardware",
    "ImageBatches",
    "Mode",
    "Progress",
    "Recipe",
    "SavedModel",
    "Stopped",
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
    "training_flop",
    "training_loader",
]
