"""What the classifier of a frozen backbone is given: computed once for each image, and kept on the disk."""

import hashlib
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from glocal.errors import GlocalError
from glocal.files import atomic_write_bytes
from glocal.models.creation import heads
from glocal.training import ImageBatches, predict


@dataclass(frozen=True, eq=False)
class Features:
    """Features of the images of a comparison by one backbone.

    Attributes:
        train: (N, D) float32, of all training images.
        val: (M, D) float32, of the validation images.
        seconds: that computing them took.
    """

    train: Tensor
    val: Tensor
    seconds: float


class HeadInputs(nn.Module):
    """A classifier without the last step: (B, 3, H, W) -> (B, D), the inputs of its linear heads side by side.

    A model of several heads (Conformer, DeiT with distillation) has logits that are the mean of theirs, or their sum:
    linear in these inputs together.

    Args:
        model: a timm classifier.

    Raises:
        GlocalError: if a head is not linear.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.heads = heads(model)
        for head in self.heads:
            if not isinstance(head, nn.Linear | nn.Conv2d) or head.bias is None:
                got = "one without a bias" if isinstance(head, nn.Linear | nn.Conv2d) else type(head).__name__
                raise GlocalError(
                    f"probe: expected a model with a linear classifier and its bias, got {got}; use --mode finetune"
                )

    def forward(self, x: Tensor) -> Tensor:
        """What each head is given, flattened."""
        taken: dict[nn.Module, Tensor] = {}

        def take(head: nn.Module, args: tuple[Tensor, ...]) -> None:
            taken[head] = args[0].flatten(1)

        hooks = [head.register_forward_pre_hook(take) for head in self.heads]
        try:
            self.model(x)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat([taken[head] for head in self.heads], dim=1)

    @property
    def shares(self) -> tuple[float, ...]:
        """What `set_heads` may take as ``share``: logits are the sum of the heads', or their mean."""
        return (1.0,) if len(self.heads) == 1 else (1.0, 1 / len(self.heads))

    @torch.no_grad()
    def set_heads(self, weight: Tensor, bias: Tensor, share: float) -> None:
        """Make the model's logits those of a linear classifier.

        Args:
            weight: (K, D).
            bias: (K,).
            share: of each head in the logits: 1 for their sum, 1 / number of heads for their mean.
        """
        widths = [head.weight[0].numel() for head in self.heads]
        for head, part in zip(self.heads, weight.split(widths, dim=1), strict=True):
            head.weight.copy_((part / share).view_as(head.weight))
            head.bias.copy_(bias / (share * len(self.heads)))


class FeatureStore:
    """Features on the disk, by weights, data and size.

    Args:
        folder: of the files, ``NAME-KEY.safetensors``.
        fingerprint: of the data.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder, self.fingerprint = folder, fingerprint

    def features(
        self,
        name: str,
        backbone: HeadInputs,
        normalize: nn.Module,
        images: tuple[ImageBatches, ImageBatches],
        device: str,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Features:
        """Features of training and validation images: read if they are there, else computed and written.

        Args:
            name: of the model, safe as a file name.
            backbone: in its final state.
            normalize: applied to uint8 images.
            images: training and validation images.
            device: where the model runs.
            progress: is told how many images are done, of how many.
        """
        about = {
            "weights": digest(backbone.model),
            "preprocessing": [tensor.tolist() for tensor in normalize.state_dict().values()],
            "data": self.fingerprint,
            "size": images[0].size,
            "crop_pct": images[0].crop_pct,
            "device": torch.device(device).type,
        }
        key = hashlib.sha256(json.dumps(about).encode()).hexdigest()
        path = self.folder / f"{name}-{key[:12]}.safetensors"
        if (kept := self._read(path, key)) is not None:
            return kept
        counts = [len(part) for part in images]
        start = time.perf_counter()
        train = predict(backbone, normalize, images[0], device, lambda done: progress(done, sum(counts)))
        val = predict(backbone, normalize, images[1], device, lambda done: progress(counts[0] + done, sum(counts)))
        seconds = time.perf_counter() - start
        metadata = {"key": key, "seconds": f"{seconds:.6g}", "sha256": _sha256(train, val)}
        try:
            self.folder.mkdir(exist_ok=True)
            atomic_write_bytes(path, save({"train": train, "val": val}, metadata))
        except OSError as error:  # they are computed again where they are needed again
            warnings.warn(f"features of {name} are not kept in {self.folder}: {error}", stacklevel=2)
        return Features(train, val, float(metadata["seconds"]))

    @staticmethod
    def _read(path: Path, key: str) -> Features | None:
        """The features of a file; None if it is missing, damaged or of something else."""
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                train, val = file.get_tensor("train"), file.get_tensor("val")
                if metadata.get("key") != key or metadata.get("sha256") != _sha256(train, val):
                    return None
                return Features(train, val, float(metadata["seconds"]))
        except (OSError, SafetensorError, KeyError, ValueError):
            return None


def _sha256(*tensors: Tensor) -> str:
    """Of shapes and values."""
    hashed = hashlib.sha256()
    for tensor in tensors:
        hashed.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        hashed.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


def digest(model: Any) -> str:
    """SHA-256 of a model's architecture and tensors, without those of its heads."""
    of_heads = {id(tensor) for head in heads(model) for tensor in head.state_dict(keep_vars=True).values()}
    hashed = hashlib.sha256(f"{type(model).__name__} {model}".encode())
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        if id(tensor) not in of_heads:
            hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            hashed.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return hashed.hexdigest()
