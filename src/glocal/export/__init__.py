"""Export models to ONNX Runtime, OpenVINO and torch, and run the exported files."""

from glocal.export.description import FORMATS, RUNTIMES, Description, Format, Runtime, Size, height_and_width
from glocal.export.formats import ENDS
from glocal.export.loading import ExportedModel, load_exported, runtime_for
from glocal.export.sources import RANDOM, Source, from_run, named
from glocal.export.verification import Check, VerificationError, builtin_images
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
    "runtime_for",
]
