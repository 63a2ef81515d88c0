"""Learning-rate schedule over the budget, whatever its unit: epochs, seconds or floating-point operations."""

from typing import Any

import torch
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, PolyLRScheduler
from timm.scheduler.scheduler import Scheduler

from glocal.training.config import TrainConfig

SCHEDULE_STEPS = 100_000
"""timm's schedulers take whole updates: the budget is cut into so many."""


class LRSchedule:
    """Linear warm-up, then the decay of the recipe.

    Args:
        optimizer: whose learning rates are set.
        config: kind of decay, warm-up, milestones, lowest learning rate.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, config: TrainConfig) -> None:
        self.scheduler = _scheduler(optimizer, config)

    def step(self, done: float) -> None:
        """Set the learning rates for ``done``, the fraction of the budget that is used up, from 0 to 1."""
        self.scheduler.step_update(round(done * SCHEDULE_STEPS))


def _scheduler(optimizer: torch.optim.Optimizer, config: TrainConfig) -> Scheduler:
    warmup = round(config.schedule.warmup * SCHEDULE_STEPS)
    options: dict[str, Any] = {"warmup_t": warmup, "warmup_prefix": True, "t_in_epochs": False}
    if config.schedule.schedule == "step":
        left = SCHEDULE_STEPS - warmup
        after = [round(share * SCHEDULE_STEPS) - warmup for share in config.schedule.milestones]
        return MultiStepLRScheduler(optimizer, after or [left // 3, 2 * left // 3], decay_rate=0.1, **options)
    options |= {"t_initial": SCHEDULE_STEPS - warmup, "lr_min": config.schedule.min_lr * config.lr_scale}
    if config.schedule.schedule == "poly":
        return PolyLRScheduler(optimizer, power=config.schedule.poly_power, **options)
    return CosineLRScheduler(optimizer, **options)
