"""Writers of the file formats."""

import hashlib
import importlib
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from glocal.errors import GlocalError
from glocal.export.description import KEY, NO_DIGEST, Format
from glocal.export.graph import decompose_attention, quiet

OPSET = 20
"""ONNX opset: ONNX Runtime since 1.17, OpenVINO since 2024."""
MAX_ONE_FILE = 2**31 - 2**24
"""Largest size of weights inside an .onnx (protobuf is limited to 2 GiB); larger ones are in FILE.onnx.data."""
INPUT, OUTPUT = "image", "logits"
INSIDE = "extra/glocal.json"  # in a .pt2
ENDS: dict[Format, str] = {
    "onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2", "aoti": ".pt2", "safetensors": ""
}  # fmt: skip
"""File name suffixes; safetensors is a folder."""
HALF: dict[Format, torch.dtype] = {"onnx": torch.float16, "torch-export": torch.bfloat16, "aoti": torch.bfloat16}
"""Compute dtype with ``half``: on a CPU torch's float16 is ten times slower than bfloat16, and ONNX Runtime has no
bfloat16. OpenVINO stores float16 and selects the compute dtype itself."""


def require(package: str) -> Any:
    """Import a package of the ``export`` extra.

    Raises:
        GlocalError: if it is not installed.
    """
    try:
        with _without_telemetry():
            return importlib.import_module(package)
    except ImportError as error:
        raise GlocalError(f"export: {package} is not installed; pip install glocal[export]") from error


@cache
def openvino_core() -> Any:
    """OpenVINO's `Core`, one per process and never freed.

    A second one that outlives the first restores the first's freed signal stack: the next signal, even SIGCHLD, would
    crash Python.

    Raises:
        GlocalError: if OpenVINO is not installed.
    """
    return require("openvino").Core()


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Disable OpenVINO's telemetry on import by hiding its telemetry package."""
    name = "openvino_telemetry"
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


def check_compiler() -> None:
    """Check that aoti has a C++ compiler.

    Raises:
        GlocalError: if there is no C++ compiler.
    """
    if shutil.which(os.environ.get("CXX") or "g++") is None and shutil.which("clang++") is None:
        raise GlocalError("aoti: expected a C++ compiler, found none; install g++, or set CXX")


def companion(path: Path) -> Path | None:
    """The possible companion file with the weights."""
    return {".xml": path.with_suffix(".bin"), ".onnx": path.with_name(f"{path.name}.data")}.get(path.suffix)


def write_onnx(program: ExportedProgram, path: Path, text: str, half: bool) -> None:
    """FILE.onnx; large weights in FILE.onnx.data."""
    require("onnxscript")
    with quiet():
        made: Any = torch.onnx.export(
            decompose_attention(program),
            (),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
    for node in made.model.graph.all_nodes():
        node.metadata_props.clear()  # of debuggers
    made.model.metadata_props[KEY] = text
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    made.save(path, external_data=num_bytes > MAX_ONE_FILE)
    seal(path)


def write_openvino(program: ExportedProgram, path: Path, text: str, half: bool) -> None:
    """FILE.xml and FILE.bin.

    Converted from ONNX: as exact and fast as from torch's graph (docs/export.md), whose converter sends telemetry.
    """
    ov = require("openvino")
    with tempfile.TemporaryDirectory() as folder:
        write_onnx(program, Path(folder) / "model.onnx", text, half)
        model = openvino_core().read_model(Path(folder) / "model.onnx")
    for key in list(model.rt_info):
        del model.rt_info[key]
    model.set_rt_info(text, KEY)
    ov.save_model(model, path, compress_to_fp16=half)
    seal(path)


def write_torch_export(program: ExportedProgram, path: Path, text: str, half: bool) -> None:
    """FILE.pt2 for torch.export.load."""
    program.example_inputs = None  # several MB of zeros
    with quiet():
        torch.export.save(program, path, extra_files={Path(INSIDE).name: text})


def write_aoti(program: ExportedProgram, path: Path, text: str, half: bool) -> None:
    """FILE.pt2 for torch._inductor.aoti_load_package: machine code for this type of CPU."""
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.utils import fresh_cache

    with quiet(), fresh_cache():
        aoti_compile_and_package(program, package_path=str(path))
    with zipfile.ZipFile(path, "a") as package:
        root = package.namelist()[0].split("/")[0]
        package.writestr(f"{root}/{INSIDE}", text)


WRITERS: dict[Format, Callable[[ExportedProgram, Path, str, bool], None]] = {
    "onnx": write_onnx, "openvino": write_openvino, "torch-export": write_torch_export, "aoti": write_aoti,
}  # fmt: skip


def digest_of(content: bytes, side: Path | None, digest: str) -> str:
    """SHA-256 over a file with zeros instead of ``digest``, and over its companion."""
    total = hashlib.sha256(content.replace(digest.encode(), NO_DIGEST.encode()))
    if side is not None:
        with open(side, "rb") as file:
            while piece := file.read(2**20):
                total.update(piece)
    return total.hexdigest()


def seal(path: Path) -> None:
    """Write the digest of a file and its companion into its description."""
    content, side = path.read_bytes(), companion(path)
    digest = digest_of(content, side if side and side.exists() else None, NO_DIGEST)
    path.write_bytes(content.replace(NO_DIGEST.encode(), digest.encode()))
