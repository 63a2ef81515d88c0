"""What the engine trains: a model with its loss, its optimizer and the average of its weights.

Models and losses are plain modules and know nothing of the engine.
"""

import copy
from typing import Any, cast

import pytorch_lightning as pl
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from glocal.models.creation import frozen_norms
from glocal.training.loader import Batch
from glocal.training.objective import Objective
from glocal.training.recipe import Recipe

SCHEDULE_STEPS = 100_000
"""The schedule is a function of the share of the budget that is used up; timm's takes whole updates, so many in all."""


class Task(pl.LightningModule):
    """Model, loss and optimizer as the engine wants them.

    Args:
        model: what is trained.
        objective: what for.
        recipe: how.
        sharded: whether its parameters are split over the processes (FSDP2).
    """

    def __init__(self, model: nn.Module, objective: Objective, recipe: Recipe, sharded: bool = False) -> None:
        super().__init__()
        self.model, self.objective, self.recipe, self.sharded = model, objective, recipe, sharded
        self.ema = ModelEmaV3(model, decay=recipe.ema) if recipe.ema else None
        self.frozen = frozen_norms(model)

    @property
    def tested(self) -> nn.Module:
        """What is tested and kept: the average of the weights, where the recipe asks for one."""
        return self.model if self.ema is None else self.ema.module

    def configure_model(self) -> None:
        """Split the parameters over the processes, once the engine knows them."""
        if self.sharded:
            for model in {id(m): m for m in (self.model, self.tested)}.values():
                shard(model, cast("Any", self.device_mesh)["data_parallel"])

    def training_step(self, batch: Batch, _: int) -> torch.Tensor:
        """Loss of a part of a step: the mean over its images, times its weight."""
        loss = self.objective.loss(self.model, batch)
        return loss if batch.weight == 1 else loss * batch.weight

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """timm's, with its rules of weight and layer decay."""
        recipe = self.recipe
        fused = recipe.optimizer == "adamw" and not self.sharded and str(self.trainer.precision) != "16-mixed"
        options: dict[str, Any] = {"fused": True} if fused else {}
        if recipe.layer_decay < 1:
            options["layer_decay"] = recipe.layer_decay
        return create_optimizer_v2(
            self.model,
            opt=recipe.optimizer,
            lr=recipe.lr * recipe.scaled,
            weight_decay=recipe.weight_decay,
            momentum=recipe.momentum,
            **options,
        )


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe) -> Scheduler:
    """Linear warm-up and the recipe's decay over `SCHEDULE_STEPS` virtual updates: the whole budget, in any unit."""
    warmup = round(recipe.warmup * SCHEDULE_STEPS)
    options: dict[str, Any] = {"warmup_t": warmup, "warmup_prefix": True, "t_in_epochs": False}
    if recipe.schedule == "step":
        left = SCHEDULE_STEPS - warmup
        after = [round(share * SCHEDULE_STEPS) - warmup for share in recipe.milestones] or [left // 3, 2 * left // 3]
        return MultiStepLRScheduler(optimizer, after, decay_rate=0.1, **options)
    options |= {"t_initial": SCHEDULE_STEPS - warmup, "lr_min": recipe.min_lr * recipe.scaled}
    if recipe.schedule == "poly":
        return PolyLRScheduler(optimizer, power=recipe.poly_power, **options)
    return CosineLRScheduler(optimizer, **options)


def shard(model: nn.Module, mesh: Any) -> None:
    """FSDP2: each block of a container is split over the processes, and gathered when it is used."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for container in model.modules():
        if isinstance(container, nn.ModuleList | nn.Sequential):
            for block in container:
                if len(list(block.modules())) > 1 and any(True for _ in block.parameters()):
                    fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if hasattr(model, "training_loss"):
        register_fsdp_forward_method(model, "training_loss")


def capture(task: Task, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Every tensor that training depends on, on the CPU, by name; of parameters that are split, the whole.

    All processes must call it; each gets the same.
    """
    names = {id(p): name for name, p in task.model.named_parameters()}
    state = {names[id(p)]: {key: _whole(value) for key, value in of.items()} for p, of in optimizer.state.items() if of}
    captured = {"state_dict": whole_state(task.tested), "optimizer": state}
    if task.ema is not None:
        captured["raw"] = whole_state(task.model)
    scaler = getattr(task.trainer.precision_plugin, "scaler", None)
    if scaler is not None:
        captured["scaler"] = scaler.state_dict()
    return captured


def restore(task: Task, optimizer: torch.optim.Optimizer, captured: dict[str, Any]) -> None:
    """Put back what `capture` gave, whatever the number of processes is now."""
    _load(task.tested, captured["state_dict"])
    if task.ema is not None:
        _load(task.model, captured["raw"])
    parameters = dict(task.model.named_parameters())
    for name, of in captured["optimizer"].items():
        parameter = parameters[name]
        optimizer.state[parameter] = {
            key: _like(value, parameter) if isinstance(value, torch.Tensor) else value for key, value in of.items()
        }
    scaler = getattr(task.trainer.precision_plugin, "scaler", None)
    if scaler is not None and "scaler" in captured:
        scaler.load_state_dict(captured["scaler"])


def whole_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """State dict on the CPU; a copy, so that further steps do not change it."""
    return {name: _whole(tensor) for name, tensor in model.state_dict().items()}


def plain_copy(model: nn.Module, state_dict: dict[str, torch.Tensor]) -> nn.Module:
    """A model with these weights; ``model`` is left alone."""
    model = copy.deepcopy(model)
    model.load_state_dict(state_dict)
    return model


def _whole(value: Any) -> Any:
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.detach().cpu().clone() if isinstance(value, torch.Tensor) else value


def _load(model: nn.Module, state_dict: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            saved = state_dict[name]
            if isinstance(tensor, DTensor):
                saved = distribute_tensor(saved.to(tensor.device), tensor.device_mesh, tensor.placements)
            tensor.copy_(saved)


def _like(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A tensor of the optimizer's state where and as its parameter is; counters of steps are single numbers."""
    if value.ndim == 0:
        return value.to(parameter.device)
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    value = value.to(parameter.device)
    return value.to(memory_format=torch.channels_last) if value.ndim == 4 and _is_channels_last(parameter) else value


def _is_channels_last(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last)
