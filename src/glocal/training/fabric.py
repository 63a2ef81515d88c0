"""Lightning Fabric as the loop uses it: devices, processes, precision, sharding.

Lightning is imported as Fabric alone, here and in `glocal.training.lightning`, which is for users of its Trainer.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from glocal.training.hardware import HardwareConfig
from glocal.training.trainable import TrainsItself

PRECISIONS: dict[str, Any] = {"32": None, "bf16": "bf16-mixed", "fp16": "16-mixed"}
"""Precision -> Fabric's name of it."""
TIMEOUT = timedelta(minutes=10)
"""Timeout of collectives; a process that dies is noticed at once, by its closed connections."""


class Autocast(MixedPrecision):
    """Mixed precision by autocast alone: Fabric would also cast float inputs, such as boxes, to 16 bits."""

    def convert_input(self, data: Any) -> Any:
        """As they are."""
        return data

    def forward_context(self) -> torch.autocast:
        """Without autocast's cache: gradients of weights that are used twice are summed in float32."""
        return torch.autocast(self.device, dtype=self._desired_input_dtype, cache_enabled=False)


def make_fabric(
    hardware: HardwareConfig, find_unused: Callable[[], bool], parallelize: Callable[[Any, Any], nn.Module]
) -> Fabric:
    """Lightning Fabric for this hardware.

    Args:
        hardware: devices, processes, precision.
        find_unused: whether a step may leave a parameter without a gradient; DDP must know.
        parallelize: shards a module over a device mesh, for FSDP2.
    """
    device = torch.device(hardware.device)
    devices: Any = hardware.devices
    if hardware.world_size == 1:
        devices = 1 if device.index is None or device.type == "cpu" else [device.index]
    strategy: Any = "auto"
    if hardware.world_size > 1:
        group: Any = {"process_group_backend": "nccl" if device.type == "cuda" else "gloo", "timeout": TIMEOUT}
        if hardware.is_sharded:
            strategy = ModelParallelStrategy(parallelize, hardware.world_size, tensor_parallel_size=1, **group)
        else:
            strategy = DDPStrategy(find_unused_parameters=find_unused(), gradient_as_bucket_view=True, **group)
    precision = PRECISIONS[hardware.precision]
    return Fabric(
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=devices,
        num_nodes=hardware.num_nodes,
        strategy=strategy,
        plugins=[] if precision is None else [Autocast(precision, device.type)],
    )


def grad_scaler(fabric: Fabric) -> torch.amp.GradScaler | None:
    """The scaler of the loss in fp16; None in other precisions."""
    precision = fabric.strategy.precision
    return precision.scaler if isinstance(precision, MixedPrecision) else None


@contextmanager
def quiet_fabric() -> Iterator[None]:
    """Without Fabric's banners about devices and processes."""
    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def shard(model: nn.Module, mesh: Any) -> None:
    """FSDP2: each block of a container is sharded over the processes, and gathered on use."""
    for container in model.modules():
        if isinstance(container, nn.ModuleList | nn.Sequential):
            for block in container:
                if len(list(block.modules())) > 1 and any(True for _ in block.parameters()):
                    fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if isinstance(model, TrainsItself):
        register_fsdp_forward_method(model, "training_loss")
