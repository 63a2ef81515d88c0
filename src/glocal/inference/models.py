"""What can be put to work: a saved model in torch, or an exported one in its runtime."""

from pathlib import Path

import torch
from torch import nn

from glocal.errors import GlocalError
from glocal.export import ExportedModel, Runtime, height_and_width, load_exported, runtime_for
from glocal.files import printable
from glocal.inference.inputs import Inputs, Reader
from glocal.models.io import ModelConfig, SavedModel, load_model, triple
from glocal.tasks import ClassificationTask
from glocal.training import resolve_device

Model = SavedModel | ExportedModel


def open_model(path: Path, runtime: Runtime | None = None, *, trust: bool = False) -> Model:
    """Read a model.

    Args:
        path: folder of a run, its .safetensors, or a file of `glocal export`.
        runtime: what runs it; by default the one for such a file.
        trust: read a .pt2, from which code can run.

    Raises:
        GlocalError: if there is none, it is damaged, or the runtime is none for it.
    """
    if path.suffix in (".onnx", ".xml", ".pt2") and not path.is_dir():
        return load_exported(path, runtime, trust=trust)
    if runtime is not None:
        runtime_for(path, runtime)
    return load_model(path, "classification")


def device_for(model: Model, name: str) -> str:
    """``auto``, or a device, as `resolve_device`; an exported model runs on the CPU.

    Raises:
        GlocalError: for a device on which the model cannot run.
    """
    if not isinstance(model, ExportedModel):
        return resolve_device(name)
    if name not in ("auto", "cpu"):
        raise GlocalError(f"device: expected cpu for {printable(model.path)}, an exported model, got {name!r}")
    return "cpu"


def reader_for(model: Model, inputs: Inputs, batch_size: int) -> Reader:
    """Batches of images as the model wants them."""
    interpolation = model.interpolation if isinstance(model, ExportedModel) else "bicubic"
    return Reader(
        inputs, size=model.image_size, crop_pct=model.crop_pct, interpolation=interpolation, batch_size=batch_size
    )


def task_and_model(saved: Model, device: str | torch.device) -> tuple[ClassificationTask, nn.Module]:
    """A classifier on a device, and its task; images come from `reader_for`."""
    config = ModelConfig(
        task="classification",
        architecture=saved.name,
        classes=saved.classes,
        image_size=max(height_and_width(saved.image_size)),
        mean=triple(saved.mean),
        std=triple(saved.std),
        crop_pct=saved.crop_pct,
    )
    model = saved.model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return ClassificationTask(config).to(device), model
