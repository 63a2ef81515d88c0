"""Trained models for other runtimes: ONNX Runtime, OpenVINO, torch alone; and their files at work."""

from glocal.export.description import FORMATS, RUNTIMES, Description, Format, Runtime, Size
from glocal.export.formats import ENDS
from glocal.export.loading import ExportedModel, load_exported, runtime_for
from glocal.export.preparation import builtin_images, height_and_width, prepare
from glocal.export.sources import RANDOM, Source, from_run, named
from glocal.export.verification import Check, VerificationError
from glocal.export.writing import Exported, export_model

__all__ = [
    "ENDS",
    "FORMATS",
    "RANDOM",
    "RUNTIMES",
    "Check",
    "Description",
    "Exported",
    "ExportedModel",
    "Format",
    "Runtime",
    "Size",
    "Source",
    "VerificationError",
    "builtin_images",
    "export_model",
    "from_run",
    "height_and_width",
    "load_exported",
    "named",
    "prepare",
    "runtime_for",
]
