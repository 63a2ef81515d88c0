"""Hardware settings of a run: device, processes, strategy and precision."""

import copy
import os
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from glocal.errors import GlocalError
from glocal.training.checks import check_types


@dataclass(frozen=True)
class HardwareConfig:
    """Devices, processes and precision of a run.

    Attributes:
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        devices: processes per node, one per device.
        num_nodes: machines.
        strategy: ``ddp``: each process has the whole model; ``fsdp``: parameters are sharded over the processes.
        precision: ``32``, ``bf16`` or ``fp16`` (both mixed).
        sync_batchnorm: normalise over the batches of all devices.
    """

    device: str = "cpu"
    devices: int = 1
    num_nodes: int = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"
    precision: Literal["32", "bf16", "fp16"] = "32"
    sync_batchnorm: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        kind = self.device.partition(":")[0]
        if kind not in ("cpu", "cuda", "mps"):
            raise GlocalError(
                f"device: expected cpu, cuda, cuda:1 or mps, got {self.device!r}; resolve_device finds this machine's"
            )
        if self.devices < 1 or self.num_nodes < 1:
            raise GlocalError(f"devices: expected at least 1 of 1 node, got {self.devices} of {self.num_nodes}")
        if kind == "mps" and self.world_size > 1:
            raise GlocalError("devices: expected 1 with mps; mps does not support several devices")
        if self.precision == "fp16" and kind != "cuda":
            raise GlocalError(f"precision: fp16 needs a CUDA device, got {self.device}; bf16 and 32 work everywhere")

    @property
    def world_size(self) -> int:
        """Processes in all."""
        return self.devices * self.num_nodes

    @property
    def is_sharded(self) -> bool:
        """Whether parameters are sharded over the processes."""
        return self.strategy == "fsdp" and self.world_size > 1

    def placed(self) -> "HardwareConfig":
        """With the processes that torchrun started; --devices is ignored."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return self
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return replace(self, devices=local, num_nodes=int(os.environ["WORLD_SIZE"]) // local)

    def check(self) -> None:
        """Reject more devices than this machine has.

        Raises:
            GlocalError: naming the option.
        """
        if self.device.startswith("cuda") and self.devices > torch.cuda.device_count():
            raise GlocalError(
                f"devices: expected at most {torch.cuda.device_count()} (this machine's), got {self.devices}"
            )


def is_first_process() -> bool:
    """Whether this is the process that writes and prints: the only one, or rank 0 of torchrun, SLURM or Lightning."""
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ and (name == "RANK" or "SLURM_NTASKS" in os.environ):
            return os.environ[name] == "0"
    return os.environ.get("NODE_RANK", "0") == "0" and os.environ.get("LOCAL_RANK", "0") == "0"


def resolve_device(name: str) -> str:
    """``auto``, or a device that torch can use here.

    Raises:
        GlocalError: for a device that torch does not know or this machine does not have.
    """
    usable = [
        *(["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))] if torch.cuda.is_available() else []),
        *(["mps"] if torch.backends.mps.is_available() else []),
        "cpu",
    ]
    if name == "auto":
        return usable[0]
    if name not in usable:
        raise GlocalError(
            f"device: expected auto or one of {', '.join(usable)} (available on this machine), got {name!r}"
        )
    return name


@torch.no_grad()
def check_bf16_convolutions(model: nn.Module) -> None:
    """Check that this CPU computes the convolutions of a model in bfloat16.

    oneDNN 3.12, in torch 2.14, gives wrong numbers on CPUs with AMX where a kernel of width 4 or more has fewer than 32
    input channels: findings/torch-bf16-convolution-amx.sh.

    Raises:
        GlocalError: naming the first layer whose outputs are wrong.
    """
    seen = set()
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Conv2d) or layer.in_channels // layer.groups >= 32 or layer.kernel_size[1] < 4:
            continue
        like = layer.weight.shape, layer.stride, layer.padding, layer.dilation, layer.groups
        if like in seen:
            continue
        seen.add(like)
        side = 4 * max(d * k for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(1, layer.in_channels, side, side, generator=generator)
        expected, got = layer(image), copy.deepcopy(layer).bfloat16()(image.bfloat16()).float()
        if not (got - expected).abs().max() <= 0.1 * expected.abs().max():
            raise GlocalError(
                f"precision: bf16 on this CPU gives wrong outputs of {name} (torch {torch.__version__}, oneDNN with "
                "AMX); expected those of 32 up to rounding; set ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 in the "
                "environment, or use --precision 32"
            )
