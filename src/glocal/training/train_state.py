"""The state of a run in a checkpoint: counters and curve (`TrainState`), every tensor (`capture`, `restore`)."""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from glocal.data import Skipped


@dataclass(frozen=True)
class CurvePoint:
    """An evaluation: ``seconds`` of training, mean training loss since the last one, validation loss and score."""

    epoch: float
    step: int
    seconds: float
    train_loss: float
    val_loss: float | None
    val_score: float


@dataclass(frozen=True)
class TrainingProgress:
    """What a progress bar shows: ``done`` of the budget (0 to 1), smoothed loss, the last evaluation."""

    done: float
    epoch: float
    step: int
    loss: float
    images_per_s: float
    seconds_left: float
    point: CurvePoint | None


@dataclass
class TrainState:
    """The progress of a run, without its tensors.

    Attributes:
        step: optimizer steps so far.
        images: images trained on.
        nan_skips: skipped steps with a non-finite loss or gradient.
        aside: seconds of evaluation and checkpoints.
        trained: seconds of training, without those.
        wall: seconds since the first step.
        loss_sum: of the steps since the last evaluation.
        loss_count: their number.
        row_sum: of the steps since the last row of metrics.csv.
        row_count: their number.
        smooth_loss: exponential average over steps; NaN before the first.
        best: step and score of the best evaluation.
        curve: all evaluations.
        skipped: images that became unreadable, each once.
    """

    step: int = 0
    images: int = 0
    nan_skips: int = 0
    aside: float = 0.0
    trained: float = 0.0
    wall: float = 0.0
    loss_sum: float = 0.0
    loss_count: int = 0
    row_sum: float = 0.0
    row_count: int = 0
    smooth_loss: float = math.nan
    best: tuple[int, float] = (0, -1.0)
    curve: list[CurvePoint] = field(default_factory=list)
    skipped: dict[Skipped, None] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        plain = asdict(replace(self, skipped={}))  # a dict is no key of another
        return {**plain, "skipped": [asdict(skipped) for skipped in self.skipped]}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> "TrainState":
        """The state of `to_dict`."""
        curve = [CurvePoint(**point) for point in state["curve"]]
        skipped = {Skipped(**skipped): None for skipped in state["skipped"]}
        return cls(**{**state, "best": tuple(state["best"]), "curve": curve, "skipped": skipped})

    def start_clock(self) -> None:
        """Call it when training starts or resumes."""
        self._start = time.perf_counter() - self.trained - self.aside

    def seconds(self) -> float:
        """Since the first step; time between a stop and a resume does not count."""
        return time.perf_counter() - self._start

    def add_step(self, images: int, seconds: float) -> None:
        """Count an optimizer step that ended ``seconds`` after the start of the run."""
        self.step += 1
        self.images += images
        self.wall = seconds
        self.trained = seconds - self.aside

    def add_loss(self, loss: float) -> None:
        """Add the loss of a step."""
        self.loss_sum, self.loss_count = self.loss_sum + loss, self.loss_count + 1
        self.row_sum, self.row_count = self.row_sum + loss, self.row_count + 1
        self.smooth_loss = loss if math.isnan(self.smooth_loss) else 0.95 * self.smooth_loss + 0.05 * loss

    def add_evaluation(self, epoch: float, val_loss: float | None, val_score: float) -> None:
        """Add a point to the curve."""
        train_loss = self.loss_sum / self.loss_count if self.loss_count else self.smooth_loss
        self.curve.append(CurvePoint(epoch, self.step, self.trained, train_loss, val_loss, val_score))
        if val_score > self.best[1]:
            self.best = self.step, val_score
        self.loss_sum, self.loss_count = 0.0, 0

    def row_loss(self) -> float:
        """Mean loss since the last call; NaN without a step."""
        mean = self.row_sum / self.row_count if self.row_count else math.nan
        self.row_sum, self.row_count = 0.0, 0
        return mean


def capture(
    model: nn.Module, ema: nn.Module | None, optimizer: torch.optim.Optimizer, scaler: Any = None
) -> dict[str, Any]:
    """Every tensor that training depends on, on the CPU, by name; sharded parameters are gathered.

    All processes must call it; each gets the same.

    Args:
        model: the model to train.
        ema: the exponential moving average of its weights, if any; it is what is evaluated and saved.
        optimizer: of the model's parameters.
        scaler: the loss scaler of fp16.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    state = {names[id(p)]: {key: _whole(value) for key, value in of.items()} for p, of in optimizer.state.items() if of}
    captured = {"state_dict": whole_state_dict(model if ema is None else ema), "optimizer": state}
    if ema is not None:
        captured["raw"] = whole_state_dict(model)
    if scaler is not None:
        captured["scaler"] = scaler.state_dict()
    return captured


def restore(
    captured: Mapping[str, Any],
    model: nn.Module,
    ema: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    scaler: Any = None,
) -> None:
    """Restore the output of `capture`, with any number of processes."""
    _load(model if ema is None else ema, captured["state_dict"])
    if ema is not None:
        _load(model, captured["raw"])
    parameters = dict(model.named_parameters())
    for name, of in captured["optimizer"].items():
        parameter = parameters[name]
        optimizer.state[parameter] = {
            key: _like(value, parameter) if isinstance(value, torch.Tensor) else value for key, value in of.items()
        }
    if scaler is not None and "scaler" in captured:
        scaler.load_state_dict(captured["scaler"])


def whole_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """State dict on the CPU; a copy, so further steps do not change it."""
    return {name: _whole(tensor) for name, tensor in model.state_dict().items()}


def _whole(value: Any) -> Any:
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.detach().cpu().clone() if isinstance(value, torch.Tensor) else value


def _load(model: nn.Module, state_dict: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(_like(state_dict[name], tensor))


def _like(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A tensor of the optimizer's state with the device and sharding of its parameter; step counters are scalars."""
    value = value.to(parameter.device)
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return distribute_tensor(value, parameter.device_mesh, parameter.placements)
    channels_last = value.ndim == 4 and parameter.is_contiguous(memory_format=torch.channels_last)
    return value.to(memory_format=torch.channels_last) if channels_last else value
