"""Peak memory of a training step, from the allocations of tensors and not from the size of the process."""

import copy
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MIB = 2**20


def peak_training_memory(
    model: nn.Module,
    batch_shape: tuple[int, int, int, int],
    device: str | torch.device = "cpu",
    *,
    loss: Callable[[Any], torch.Tensor] | None = None,
) -> float:
    """Peak memory of one training step with AdamW, in MiB.

    Counted is all that lives at the worst moment of the step: parameters, buffers, gradients, AdamW's two moments, the
    batch, what the forward pass keeps for the backward pass, and temporary results. A copy of the model takes two
    steps, so that gradients and moments exist as in any later step, and the peak is that of the second.

    On CUDA it is what torch's allocator has handed out. On the CPU it is the sum of all live tensor storages, followed
    operator by operator: the same figure on every run. Scratch space within one CPU kernel is not in it.

    Args:
        model: is left as it is.
        batch_shape: (N, C, H, W).
        device: "cpu" or a CUDA device.
        loss: scalar loss from the model's output; by default cross-entropy of (N, K) logits against class 0.
    """
    device = torch.device(device)
    cuda = device.type == "cuda"
    with torch.enable_grad(), torch.random.fork_rng(devices=[device] if cuda else []):
        return (_peak_on_cuda if cuda else _peak_on_cpu)(model, batch_shape, device, loss or _cross_entropy) / MIB


def _cross_entropy(logits: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def _peak_on_cpu(
    model: nn.Module, shape: tuple[int, ...], device: torch.device, loss: Callable[[Any], torch.Tensor]
) -> int:
    model, images, step = _training_step(model, shape, device, loss)
    with _LiveStorages([*model.parameters(), *model.buffers(), images]) as live:
        step()
        live.peak = live.now
        step()
    return live.peak


def _peak_on_cuda(
    model: nn.Module, shape: tuple[int, ...], device: torch.device, loss: Callable[[Any], torch.Tensor]
) -> int:
    nn.Linear(8, 8, device=device)(torch.zeros(8, 8, device=device)).sum().backward()  # cuBLAS takes its workspaces
    before = torch.cuda.memory_allocated(device)
    _, _, step = _training_step(model, shape, device, loss)
    step()
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return torch.cuda.max_memory_allocated(device) - before


def _training_step(
    model: nn.Module, shape: tuple[int, ...], device: torch.device, loss: Callable[[Any], torch.Tensor]
) -> tuple[nn.Module, torch.Tensor, Callable[[], None]]:
    """A copy of the model in training mode, its batch, and the function that takes one step with them."""
    model = copy.deepcopy(model).to(device).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    optimizer.zero_grad()
    images = torch.zeros(shape, device=device)

    def step() -> None:
        loss(model(images)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return model, images, step


class _LiveStorages(TorchDispatchMode):
    """Follows the bytes of every storage that an operator returns, from its first sight to its release."""

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
