"""Trained models at work: predictions for many images, measurements on labelled ones."""

from glocal.inference.evaluate import evaluate, evaluation_sets
from glocal.inference.images import predict_images
from glocal.inference.inputs import Inputs, list_inputs
from glocal.inference.models import device_for, open_model
from glocal.inference.output import ClassPrediction, check_output
from glocal.inference.predict import PredictProgress, predict_files

__all__ = [
    "ClassPrediction",
    "Inputs",
    "PredictProgress",
    "check_output",
    "device_for",
    "evaluate",
    "evaluation_sets",
    "list_inputs",
    "open_model",
    "predict_files",
    "predict_images",
]
