"""Peak memory of inference and of a training step, from tensor allocations, not process size."""

import copy
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glocal.bench.passes import Loss, inference_pass, training_step

MIB = 2**20


def peak_inference_memory(
    model: nn.Module,
    batch_shape: tuple[int, int, int, int],
    device: str | torch.device = "cpu",
    *,
    precision: str = "32",
) -> float:
    """Peak memory of one forward pass in eval mode and without gradients, in MiB.

    Includes parameters, buffers, the batch, live activations, and autocast's weight casts at lower precision. Measured
    on a copy, like `peak_training_memory`.

    Args:
        model: left unchanged.
        batch_shape: (B, C, H, W).
        device: "cpu" or a CUDA device.
        precision: "32", "bf16" or "fp16".
    """

    def prepare(images: Tensor) -> tuple[nn.Module, Callable[[], None]]:
        copied = copy.deepcopy(model).to(images.device).eval()
        return copied, inference_pass(copied, images, precision=precision)

    # not inference mode, which hides the temporaries of composite operators
    with torch.no_grad():
        return _peak(prepare, batch_shape, torch.device(device)) / MIB


def peak_training_memory(
    model: nn.Module,
    batch_shape: tuple[int, int, int, int],
    device: str | torch.device = "cpu",
    *,
    loss: Loss | None = None,
    precision: str = "32",
) -> float:
    """Peak memory of one training step with AdamW, in MiB.

    Includes parameters, buffers, gradients, AdamW's two moments, the batch, saved activations and temporaries. A copy
    of the model takes two steps, so that gradients and moments exist as in later steps, and the peak is that of the
    second.

    On CUDA it is the memory allocated by torch's allocator. On the CPU it is the sum of all live tensor storages,
    traced operator by operator, so it is reproducible; scratch space within a CPU kernel is not included.

    Args:
        model: left unchanged.
        batch_shape: (B, C, H, W).
        device: "cpu" or a CUDA device.
        loss: scalar loss from the model's output; by default cross-entropy of (B, K) logits against class 0.
        precision: "32", "bf16" or "fp16".
    """

    def prepare(images: Tensor) -> tuple[nn.Module, Callable[[], None]]:
        copied = copy.deepcopy(model).to(images.device).train()
        return copied, training_step(copied, images, loss=loss, precision=precision)

    with torch.enable_grad():
        return _peak(prepare, batch_shape, torch.device(device)) / MIB


def _peak(
    prepare: Callable[[Tensor], tuple[nn.Module, Callable[[], None]]], shape: tuple[int, ...], device: torch.device
) -> int:
    """Peak bytes of the second run of the prepared pass."""
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        return (_peak_on_cuda if cuda else _peak_on_cpu)(prepare, shape, device)


def _peak_on_cpu(
    prepare: Callable[[Tensor], tuple[nn.Module, Callable[[], None]]], shape: tuple[int, ...], device: torch.device
) -> int:
    images = torch.zeros(shape, device=device)
    model, run = prepare(images)
    with _LiveStorages([*model.parameters(), *model.buffers(), images]) as live:
        run()
        live.peak = live.now
        run()
    return live.peak


def _peak_on_cuda(
    prepare: Callable[[Tensor], tuple[nn.Module, Callable[[], None]]], shape: tuple[int, ...], device: torch.device
) -> int:
    with torch.enable_grad():  # cuBLAS allocates its workspaces
        nn.Linear(8, 8, device=device)(torch.zeros(8, 8, device=device)).sum().backward()
    before = torch.cuda.memory_allocated(device)
    images = torch.zeros(shape, device=device)
    model, run = prepare(images)
    run()
    torch.cuda.reset_peak_memory_stats(device)
    run()
    peak = torch.cuda.max_memory_allocated(device)
    del model
    return peak - before


class _LiveStorages(TorchDispatchMode):
    """Tracks the bytes of every storage that an operator returns, until its release."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}
        for tensor in tensors:
            self._follow(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._follow(leaf)
        return result

    def _follow(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address not in self._sizes:
            weakref.finalize(storage, self._release, address)
        self.now += storage.nbytes() - self._sizes.get(address, 0)
        self._sizes[address] = storage.nbytes()
        self.peak = max(self.peak, self.now)

    def _release(self, address: int) -> None:
        self.now -= self._sizes.pop(address)
