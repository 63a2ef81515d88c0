"""Load checked files into the runtimes, on the CPU."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from glocal.errors import first_line
from glocal.export.description import InvalidFileError, Runtime
from glocal.export.formats import openvino_core, require
from glocal.export.graph import quiet
from glocal.export.reading import File

Run = Callable[[np.ndarray], np.ndarray]
"""(B, 3, H, W) float32, contiguous -> (B, K) float32."""


def in_onnxruntime(file: File, threads: int) -> Run:
    """A session of ONNX Runtime.

    Raises:
        InvalidFileError: if it cannot be loaded.
    """
    ort = require("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    if os.environ.get("OMP_WAIT_POLICY") != "ACTIVE":  # as for torch: spinning threads are slow on shared cores
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    model = file.content if file.is_alone else os.fspath(file.path)
    with _loading("onnxruntime"):
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        (image,), (logits,) = session.get_inputs(), session.get_outputs()
    return lambda pixels: session.run([logits.name], {image.name: pixels})[0]


def in_openvino(file: File, threads: int) -> Run:
    """A model compiled by OpenVINO, from an .xml or an .onnx.

    Raises:
        InvalidFileError: if it cannot be loaded.
    """
    ov = require("openvino")
    settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    if not file.description.half:  # otherwise OpenVINO computes in bfloat16 where supported, with errors of 1e-2
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    core = openvino_core()
    with _loading("openvino"):
        if file.path.suffix == ".xml":
            weights = ov.Tensor(np.frombuffer(file.path.with_suffix(".bin").read_bytes(), np.uint8))
            model = core.read_model(file.content, weights)
        else:
            model = core.read_model(file.content if file.is_alone else file.path)
        compiled = core.compile_model(model, "CPU", settings)
        (logits,) = compiled.outputs
    return lambda pixels: compiled(pixels)[logits]


def in_torch(file: File, threads: int) -> Run:
    """A .pt2 in torch; it can execute code.

    Raises:
        InvalidFileError: if it cannot be loaded.
    """
    with _loading("torch"), quiet():
        if file.description.format == "aoti":
            model: Any = torch._inductor.aoti_load_package(os.fspath(file.path))
        else:
            model = torch.export.load(file.path).module()
    return of_module(model, threads)


def of_module(model: Callable[[torch.Tensor], torch.Tensor], threads: int) -> Run:
    """A module of torch."""

    def run(pixels: np.ndarray) -> np.ndarray:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with torch.inference_mode():
                return model(torch.from_numpy(pixels)).numpy()
        finally:
            torch.set_num_threads(before)

    return run


@contextmanager
def _loading(runtime: str) -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # the runtimes' errors have no common base
        raise InvalidFileError(f"{runtime} cannot load it ({first_line(error)})") from error


LOADERS: dict[Runtime, Callable[[File, int], Run]] = {
    "onnxruntime": in_onnxruntime, "openvino": in_openvino, "torch": in_torch
}  # fmt: skip
RUNTIMES_BY_SUFFIX: dict[str, tuple[Runtime, ...]] = {
    ".onnx": ("onnxruntime", "openvino"), ".xml": ("openvino",), ".pt2": ("torch",), ".safetensors": ("torch",)
}  # fmt: skip
"""Runtimes for a file by its suffix, the default first."""
