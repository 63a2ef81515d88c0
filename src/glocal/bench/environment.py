"""The environment of a measurement: CPU, memory, GPU, versions. No host, user or path names."""

import importlib.metadata
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from glocal.version import __version__

PACKAGES = ("torch", "torchvision", "timm", "lightning-fabric", "transformers", "onnxruntime", "openvino")


def describe_environment(device: str | torch.device = "cpu") -> dict[str, Any]:
    """The environment of a measurement, JSON-serialisable.

    Args:
        device: of the measurement.

    Returns:
        ``platform``, ``python``, ``glocal`` and the versions of `PACKAGES` (None if not installed), ``cpu``
        (model), ``cores`` (usable by this process), ``memory_gib``, ``threads`` (of torch), ``device`` and ``gpu``
        (model, or None on a CPU).
    """
    device = torch.device(device)
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "glocal": __version__,
        **{package: _version(package) for package in PACKAGES},
        "cpu": _cpu_model(),
        "cores": _usable_cores(),
        "memory_gib": round(_memory_bytes() / 2**30, 1),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Context with this number of threads of torch; None for as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    """The name from /proc/cpuinfo (x86 only), else Python's."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _usable_cores() -> int:
    """Cores available to this process, within a container's CPU limit."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = _cgroup("cpu.max").split()
    if len(limit) == 2 and limit[0] != "max":
        cores = min(cores, max(1, int(limit[0]) // int(limit[1])))
    return cores


def _memory_bytes() -> int:
    """Memory of the machine, or the container's limit if lower."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    limit = _cgroup("memory.max").strip()
    return min(memory, int(limit)) if limit.isdecimal() else memory


def _cgroup(name: str) -> str:
    try:
        return (Path("/sys/fs/cgroup") / name).read_text()
    except OSError:
        return ""
