"""The optimizer of a recipe, by timm."""

from typing import Any

import torch
from timm.optim import create_optimizer_v2
from torch import nn

from glocal.training.config import TrainConfig


def create_optimizer(model: nn.Module, config: TrainConfig, *, fused: bool) -> torch.optim.Optimizer:
    """An optimizer of timm, with its rules of weight decay and layer decay; ``fused`` if torch has such a kernel."""
    options: dict[str, Any] = {"fused": True} if fused and config.optimizer.optimizer == "adamw" else {}
    if config.optimizer.layer_decay < 1:
        options["layer_decay"] = config.optimizer.layer_decay
    return create_optimizer_v2(
        model,
        opt=config.optimizer.optimizer,
        lr=config.optimizer.lr * config.lr_scale,
        weight_decay=config.optimizer.weight_decay,
        momentum=config.optimizer.momentum,
        **options,
    )
