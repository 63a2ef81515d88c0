"""What models cost where they will run: time in a runtime and size of the file, for `CostLimits`."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from glocal.bench import count_params, measure_together, peak_inference_memory
from glocal.comparison.cheapest import RANGE
from glocal.comparison.limits import ERROR, FILE, PARAMS, CostLimits, check_runtime, meets
from glocal.errors import GlocalError
from glocal.export import ENDS, ExportedModel, Format, Runtime, export_model, from_run, load_exported
from glocal.models.creation import model_args
from glocal.models.io import WEIGHTS, ModelConfig, find_model, load_model, save_model

TIMING_SECONDS = 1.0
"""Per model, without warm-up."""
TAKES: dict[str, tuple[Format, Runtime]] = {
    "onnxruntime": ("onnx", "onnxruntime"), "openvino": ("openvino", "openvino")
}  # fmt: skip
"""The format of a runtime, and its name in `glocal.export`."""
INFERENCE_MEMORY = "inference_memory_mib"

Costs = dict[str, dict[str, Any]]
Save = Callable[[str, Any, Path], None]
"""Writes the model of a name into a folder, as a run of the comparison does."""


class Confirmation(NamedTuple):
    """Costs of a trained model, measured again.

    Attributes:
        costs: as from `measure`.
        reasons: why it does not meet the limits; empty if it does.
    """

    costs: dict[str, Any]
    reasons: list[str]


def measure(
    models: Mapping[str, Any],
    image_size: int | Mapping[str, int],
    device: str,
    limits: CostLimits,
    *,
    save: Save | None = None,
    seconds: float | None = None,
) -> Costs:
    """Measure what limits are about, except for the memory of training, which `count_costs` measures.

    All models are timed in interleaved rounds, in the runtime with as many threads as torch has. For ``onnxruntime``
    and ``openvino`` each model is exported once, to a temporary folder; its outputs are compared with the model's.

    Args:
        models: by name; with random weights they are as fast and as large as trained. Left unchanged.
        image_size: side in pixels, of all or by model.
        device: of ``eager``; the other runtimes run on the CPU.
        limits: their runtime and batch size count, not their values.
        save: for the size of the file in ``eager``; by default as a classifier of this name with numbered classes.
        seconds: per model, without warm-up; by default `TIMING_SECONDS`.

    Returns:
        By model: `PARAMS`, `FILE`, `CostLimits.latency_key` with its quartiles, and `INFERENCE_MEMORY`, the peak of a
        forward pass in PyTorch, which no limit is about. A model that does not run in the runtime has the reason as
        `ERROR` instead of file and time.

    Raises:
        GlocalError: if the runtime is not installed.
    """
    check_runtime(limits.runtime)
    sizes = dict(image_size) if isinstance(image_size, Mapping) else dict.fromkeys(models, image_size)
    costs: Costs = {}
    for name, model in models.items():
        shape = (limits.batch_size, 3, sizes[name], sizes[name])
        costs[name] = {PARAMS: count_params(model), INFERENCE_MEMORY: peak_inference_memory(model, shape, device)}
    if limits.runtime == "eager":
        for name, model in models.items():
            costs[name][FILE] = saved_bytes(name, model, save or _classifier_saver(sizes[name]))
        times = _time(models, sizes, device, limits, seconds)
    else:
        loaded = {}
        for name, model in models.items():
            try:
                loaded[name], costs[name][FILE] = _exported(model, limits, image_size=sizes[name])
            except GlocalError as error:  # of this model alone
                costs[name][ERROR] = str(error)
        times = _time(loaded, sizes, "cpu", limits, seconds)
    return {name: of_model | times.get(name, {}) for name, of_model in costs.items()}


def check_again(
    model_folder: Path, limits: CostLimits, device: str = "cpu", *, seconds: float | None = None
) -> Confirmation:
    """Measure a trained model of a comparison once more, alone: does it meet the limits?

    In another runtime its outputs are also compared with those of the model on real images. The memory of training is
    the same as before training and is not measured again.

    Args:
        model_folder: ``runs/ID`` of a comparison, or any folder that `glocal.models.io.load_model` reads.
        limits: of the comparison.
        device: of ``eager``; the other runtimes run on the CPU.
        seconds: of timing, without warm-up; by default `TIMING_SECONDS`.

    Raises:
        CheckpointError: if the folder has no model.
        GlocalError: if the runtime is not installed.
    """
    check_runtime(limits.runtime)
    if limits.runtime == "eager":
        saved = load_model(model_folder)
        costs: dict[str, Any] = {PARAMS: count_params(saved.model), FILE: find_model(model_folder).stat().st_size}
        costs |= _time({"": saved.model}, saved.image_size, device, limits, seconds)[""]
    else:
        source = from_run(model_folder)
        costs = {PARAMS: count_params(source.model)}
        try:
            exported, costs[FILE] = _exported(
                source.model,
                limits,
                image_size=source.image_size,
                classes=source.classes,
                crop_pct=source.crop_pct,
                interpolation=source.interpolation,
                mean=source.mean,
                std=source.std,
            )
            costs |= _time({"": exported}, source.image_size, "cpu", limits, seconds)[""]
        except GlocalError as error:
            costs[ERROR] = str(error)
    return Confirmation(costs, meets(replace(limits, memory_mib=None), costs))


def _exported(model: Any, limits: CostLimits, **options: Any) -> tuple[ExportedModel, int]:
    """A model in the runtime of the limits, and the bytes of its files, which are removed.

    Raises:
        GlocalError: if it cannot be exported, or its outputs differ.
    """
    to, runtime = TAKES[limits.runtime]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{ENDS[to]}"
        exported = export_model(model, path, to=to, batch_size=limits.batch_size, **options)
        return load_exported(path, runtime), exported.num_bytes


def _time(
    models: Mapping[str, Any], image_size: Any, device: str, limits: CostLimits, seconds: float | None
) -> dict[str, dict[str, Any]]:
    """Median and quartiles of each model, in interleaved rounds."""
    if not models:
        return {}
    timings = measure_together(models, image_size, limits.batch_size, device, seconds=seconds or TIMING_SECONDS)
    key = limits.latency_key
    return {name: {key: of.median_ms, f"{key}{RANGE}": [of.low_ms, of.high_ms]} for name, of in timings.items()}


def saved_bytes(name: str, model: Any, save: Save) -> int:
    """Size of the model.safetensors of a model, written to a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        save(name, model, Path(folder))
        return (Path(folder) / WEIGHTS).stat().st_size


def _classifier_saver(image_size: int) -> Save:
    def save(name: str, model: Any, folder: Path) -> None:
        classes = [str(index) for index in range(model.num_classes)]
        keywords = model_args(name, image_size)
        config = ModelConfig.of_classifier(model, classes=classes, image_size=image_size, keywords=keywords)
        save_model(model, folder, config)

    return save
