"""Trained models at work: predictions for many images, measurements on labelled ones."""

from glocal.inference.evaluate import evaluate, evaluation_sets
from glocal.inference.images import predict_images
from glocal.inference.inputs import Inputs, list_inputs
from glocal.inference.models import Model, device_for, open_model
from glocal.inference.output import Prediction, check_output
from glocal.inference.predict import BATCH_SIZE, Progress, Summary, predict_files

__all__ = [
    "BATCH_SIZE",
    "Inputs",
    "Model",
    "Prediction",
    "Progress",
    "Summary",
    "check_output",
    "device_for",
    "evaluate",
    "evaluation_sets",
    "list_inputs",
    "open_model",
    "predict_files",
    "predict_images",
]
