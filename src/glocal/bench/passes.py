"""The benchmarked passes: inference or a training step, at a precision."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PRECISIONS: dict[str, torch.dtype | None] = {"32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Autocast dtype; None for the dtype of the weights."""

Loss = Callable[[Any], Tensor]


def autocast(device: str | torch.device, precision: str) -> AbstractContextManager[Any]:
    """The context in which a pass runs at one of `PRECISIONS`."""
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(torch.device(device).type, dtype)


def inference_pass(model: Callable[[Tensor], Any], images: Tensor, *, precision: str = "32") -> Callable[[], None]:
    """One forward pass; the caller disables gradients."""

    def run() -> None:
        with autocast(images.device, precision):
            model(images)

    return run


def training_step(
    model: nn.Module, images: Tensor, *, loss: Loss | None = None, precision: str = "32"
) -> Callable[[], None]:
    """One step of training: forward pass, loss, backward pass, AdamW.

    Args:
        model: in training mode and on the device of the images; its weights change.
        images: (B, C, H, W).
        loss: scalar from the model's output; by default cross-entropy of (B, K) logits against class 0.
        precision: one of `PRECISIONS`; "fp16" uses loss scaling.
    """
    loss = loss or cross_entropy
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    scaler = torch.amp.GradScaler(images.device.type, enabled=precision == "fp16")
    optimizer.zero_grad()

    def step() -> None:
        with autocast(images.device, precision):
            value = loss(model(images))
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


def cross_entropy(logits: Tensor) -> Tensor:
    """Cross-entropy against class 0."""
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
