"""Intercept a forward pass: which torch function is called, with which arguments, inside which module.

Hooks track the current module, a `TorchFunctionMode` the calls; both are removed afterwards, also after an error. It
works for any model made of torch functions.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from glocal.errors import GlocalError


@dataclass(frozen=True, eq=False)
class Frame:
    """A module on the call stack of the pass.

    Attributes:
        name: dotted name; "" for the model itself.
        module: the module.
        tensors: its tensor arguments.
    """

    name: str
    module: nn.Module
    tensors: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class FunctionCall:
    """A call of a torch function.

    Attributes:
        name: "add", "softmax", ...; in-place functions end in an underscore.
        args: arguments, for in-place functions before the call.
        kwargs: likewise.
        output: return value.
        frames: enclosing modules, innermost last.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any
    frames: tuple[Frame, ...]


class _Mode(TorchFunctionMode):
    def __init__(self, on_call: Callable[[FunctionCall], Any], frames: list[Frame], names: frozenset[str]):
        super().__init__()
        self.on_call, self.frames, self.names = on_call, frames, names

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name not in self.names:
            return func(*args, **kwargs)
        before = args
        if name.endswith("_") and isinstance(args[0], Tensor):
            before = (args[0].clone(), *args[1:])
        output = func(*args, **kwargs)
        replaced = self.on_call(FunctionCall(name, before, kwargs, output, tuple(self.frames)))
        return output if replaced is None else replaced


@contextmanager
def watching(model: nn.Module, on_call: Callable[[FunctionCall], Any], names: frozenset[str]) -> Iterator[list[Frame]]:
    """Pass every call of the torch functions ``names`` to ``on_call``, whose return value replaces the output.

    Calls inside ``on_call`` are not intercepted. Yields the current stack of modules.
    """
    frames: list[Frame] = []

    def enter(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        given = tuple(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        frames.append(Frame(name, module, given))

    def leave(*_: Any) -> None:
        frames.pop()

    handles = []
    try:
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(partial(enter, name), with_kwargs=True))
            handles.append(module.register_forward_hook(leave, always_call=True))
        with _Mode(on_call, frames, names):
            yield frames
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context in which the model is in eval mode; restores the mode of each module."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def logits_of(output: Any) -> Tensor:
    """(B, K) logits in what a model returns: a tensor, an object with ``logits``, or a tuple that begins with them.

    Raises:
        GlocalError: if there are none.
    """
    if isinstance(output, Mapping):
        output = output["logits"] if "logits" in output else next(iter(output.values()))
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise GlocalError(f"model: expected a tensor of outputs, got {type(output).__name__}")
    return output


def predict(model: nn.Module, images: Tensor, batch_size: int = 32) -> Tensor:
    """(B, 3, H, W) images -> (B, K) logits, without gradients and in eval mode."""
    with evaluating(model), torch.no_grad():
        return torch.cat([logits_of(model(batch)) for batch in images.split(batch_size)])


OnProgress = Callable[[int, int], None]
"""Callback with the amount done and the total."""


def silent(done: int, total: int) -> None:
    """An `OnProgress` that does nothing."""
