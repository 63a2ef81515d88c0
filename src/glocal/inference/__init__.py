"""Trained models at work: predictions for many images, measurements on labelled ones."""

from glocal.inference.evaluate import evaluate, evaluation_sets
from glocal.inference.inputs import Inputs, list_inputs
from glocal.inference.output import Prediction, check_output
from glocal.inference.predict import BATCH_SIZE, Progress, Summary, predict_files

__all__ = [
    "BATCH_SIZE",
    "Inputs",
    "Prediction",
    "Progress",
    "Summary",
    "check_output",
    "evaluate",
    "evaluation_sets",
    "list_inputs",
    "predict_files",
]
