"""Timings of models in interleaved rounds of one process.

On a shared machine absolute times drift by tens of percent within minutes. Models timed in interleaved rounds drift
together, so their order and ratios hold where those of separate measurements do not.
"""

import copy
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from scipy.stats import binom
from torch import Tensor, nn

from glocal.bench.passes import PRECISIONS, Loss, inference_pass, training_step
from glocal.errors import GlocalError, check_choice

MIN_ROUNDS = 5
"""Smallest number of rounds whose extremes are a 90 % interval of the median."""

WARM_UP_FRACTION = 0.3
"""Fraction of the progress for the warm-up; compilation takes longer."""

_YARDSTICK = "the yardstick"

Model = nn.Module | Callable[[Tensor], Any]
"""A module, or a function of (B, C, H, W) images in CPU memory for other runtimes."""

TimedPass = AbstractContextManager[Callable[[], float]]
"""Context of a function that runs the pass once and returns its seconds."""

OnTiming = Callable[[str, float], None]
"""Callback with the current activity and the fraction done."""


@dataclass(frozen=True)
class Timing:
    """Time of one forward pass of one batch.

    Attributes:
        median_ms: median over the rounds, in milliseconds.
        low_ms: first quartile.
        high_ms: third quartile.
        images_per_s: batch size over the median.
        rounds: number of timed passes.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    images_per_s: float
    rounds: int


@dataclass(frozen=True)
class Row:
    """Time of one model, and its ratio to a reference model.

    Attributes:
        name: of the model.
        ms: median over the rounds, in milliseconds; this and all other values are None if the model failed.
        ms_low, ms_high: first and third quartile.
        images_per_s: batch size over the median.
        rounds: number of timed passes or steps.
        reference: name of the reference model.
        ratio: its time over the reference's in the same round, median over the rounds: above 1 the reference is
            faster. None also if the reference failed.
        ratio_low, ratio_high: 90 % interval of that median.
        yardsticks: its time over the yardstick's in the same round, median over the rounds; None without one.
        error: one-line reason of a failure.
    """

    name: str
    reference: str
    ms: float | None = None
    ms_low: float | None = None
    ms_high: float | None = None
    images_per_s: float | None = None
    rounds: int = 0
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    yardsticks: float | None = None
    error: str | None = None


def measure_inference(
    model: nn.Module,
    image_size: int | tuple[int, int] = 224,
    batch_size: int = 1,
    device: str | torch.device = "cpu",
    *,
    in_chans: int = 3,
    seconds: float = 2.0,
) -> Timing:
    """Time the forward pass of one model; use `measure_together` to compare several."""
    timings = measure_together({"": model}, image_size, batch_size, device, in_chans=in_chans, seconds=seconds)
    return timings[""]


def measure_together(
    models: Mapping[str, nn.Module],
    image_size: int | tuple[int, int] | Mapping[str, int] = 224,
    batch_size: int = 1,
    device: str | torch.device = "cpu",
    *,
    in_chans: int = 3,
    seconds: float = 2.0,
) -> dict[str, Timing]:
    """Time the forward passes of several models in interleaved rounds; a failure raises.

    Each round runs every model once in random order, in eval and inference mode; a time includes device
    synchronisation. Channels-last models get channels-last images. Afterwards every module is back in its mode and on
    its device.

    Args:
        models: by name; each takes (batch_size, in_chans, H, W).
        image_size: side of a square image, or (H, W), in pixels; or the sides by model.
        batch_size: images in one pass.
        device: such as "cpu" or "cuda".
        in_chans: channels of the images.
        seconds: per model, without warm-up; at least `MIN_ROUNDS` rounds are run.

    Raises:
        GlocalError: without a model, or with a batch size below 1.
    """
    _check_batch(models, batch_size)
    sizes = image_size if isinstance(image_size, Mapping) else dict.fromkeys(models, image_size)
    device = torch.device(device)

    passes = {
        name: _timed_inference(model, _images(models, sizes[name], batch_size, in_chans), device, "32")
        for name, model in models.items()
    }
    times = _take_rounds(passes, seconds, errors=None)
    return {name: _summary(times[name], batch_size) for name in models}


@torch.inference_mode(False)  # a copy made in inference mode could not be trained
def compare(
    models: Mapping[str, Model],
    reference: str | Mapping[str, str],
    *,
    image_size: int | tuple[int, int] = 224,
    batch_size: int = 1,
    device: str | torch.device = "cpu",
    in_chans: int = 3,
    seconds: float = 2.0,
    train: bool = False,
    precision: str = "32",
    loss: Loss | None = None,
    yardstick: Callable[[], object] | None = None,
    observer: OnTiming | None = None,
) -> list[Row]:
    """Time models in interleaved rounds and compare each with a reference, round by round.

    Each round runs every model once in random order; a time includes device synchronisation. The times of a round are
    close together, so their ratio does not drift with the load of the machine; results are the median of these ratios
    and its distribution-free interval (order statistics; Conover 1999, §3.2). A model that fails, out of memory or
    otherwise, has an error instead of a time.

    Inference runs in eval and inference mode. A training step runs on a copy of the model in train mode: forward pass,
    loss, backward pass, AdamW. The models are unchanged.

    Args:
        models: by name; each takes (batch_size, in_chans, H, W). A function that is not a module gets images in CPU
            memory, and cannot be trained.
        reference: name of the common reference model, or one per model.
        image_size: side of a square image, or (H, W), in pixels.
        batch_size: images in one pass.
        device: such as "cpu" or "cuda".
        in_chans: channels of the images.
        seconds: per model, without warm-up; at least `MIN_ROUNDS` rounds are run.
        train: time training steps instead of inference.
        precision: "32" for the dtype of the weights, "bf16" or "fp16" for autocast.
        loss: of a training step, from the model's output; by default cross-entropy of (B, K) logits.
        yardstick: a known workload on the same device, also run in every round.
        observer: progress callback.

    Returns:
        One row per model, in order.

    Raises:
        GlocalError: without a model, with a batch size below 1, an unknown precision, or an unknown
            reference.
    """
    check_choice("precision", precision, list(PRECISIONS))
    references = {name: reference if isinstance(reference, str) else reference[name] for name in models}
    for name in references.values():
        check_choice("reference", name, list(models))
    device = torch.device(device)
    errors: dict[str, str] = {}
    try:
        images = _images(models, image_size, batch_size, in_chans)
    except (RuntimeError, MemoryError) as error:
        return [Row(name, references[name], error=describe_failure(error)) for name in models]

    passes: dict[str, TimedPass] = {
        name: _timed_training(model, images, device, precision, loss)
        if train
        else _timed_inference(model, images, device, precision)
        for name, model in models.items()
    }
    if yardstick:
        passes[_YARDSTICK] = nullcontext(_timed(yardstick, device))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        times = _take_rounds(passes, seconds, errors=errors, observer=observer)
    rows = []
    for name in models:
        row = Row(name, references[name], error=errors.get(name))
        if name not in errors:
            row = replace(row, **_figures(times[name], batch_size))
            if row.reference not in errors:
                ratio, low, high = paired_ratio(times[name], times[row.reference])
                row = replace(row, ratio=ratio, ratio_low=low, ratio_high=high)
            if yardstick and _YARDSTICK not in errors:
                row = replace(row, yardsticks=paired_ratio(times[name], times[_YARDSTICK])[0])
        rows.append(row)
    return rows


def paired_ratio(times: Sequence[float], reference: Sequence[float]) -> tuple[float, float, float]:
    """Median of the ratios of each round, and its 90 % interval.

    The interval is between two order statistics at the 5 % quantile of the binomial distribution: it holds for any
    noise distribution, if rounds are independent.

    Args:
        times: one per round.
        reference: of the same rounds; at least `MIN_ROUNDS`.
    """
    ratios = sorted(time / other for time, other in zip(times, reference, strict=True))
    rank = max(1, int(binom.ppf(0.05, len(ratios), 0.5)))
    return statistics.median(ratios), ratios[rank - 1], ratios[-rank]


def describe_failure(error: BaseException) -> str:
    """A one-line reason; out of memory comes first."""
    reason = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
    memory = isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in reason
    return f"out of memory ({reason})" if memory else reason


def _images(
    models: Mapping[str, Model], image_size: int | tuple[int, int], batch_size: int, in_chans: int
) -> torch.Tensor:
    _check_batch(models, batch_size)
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return torch.rand(batch_size, in_chans, height, width, generator=torch.Generator().manual_seed(0))


def _check_batch(models: Mapping[str, Model], batch_size: int) -> None:
    if not models or batch_size < 1:
        raise GlocalError(f"expected at least one model and one image, got {len(models)} and {batch_size}")


@contextmanager
def _timed_inference(
    model: Model, images: torch.Tensor, device: torch.device, precision: str
) -> Iterator[Callable[[], float]]:
    """A function that runs the model once and returns its seconds; the model's mode and device are restored."""
    if not isinstance(model, nn.Module):
        yield _timed(inference_pass(model, images), device)
        return
    training = {module: module.training for module in model.modules()}
    first = next(model.parameters(), torch.empty(0))
    home = first.device
    try:
        model.eval().to(device)
        images = images.to(device, first.dtype, memory_format=_memory_format(model))
        timed = _timed(inference_pass(model, images, precision=precision), device)

        def run() -> float:
            with torch.inference_mode():
                return timed()

        yield run
    finally:
        model.to(home)
        for module, mode in training.items():
            module.training = mode


@contextmanager
def _timed_training(
    model: Model, images: torch.Tensor, device: torch.device, precision: str, loss: Loss | None
) -> Iterator[Callable[[], float]]:
    """A function that trains a copy of the model by one step and returns its seconds."""
    if not isinstance(model, nn.Module):
        raise GlocalError(f"expected a module to train, got {type(model).__name__}")
    model = copy.deepcopy(model).to(device).train()
    images = images.to(device, memory_format=_memory_format(model))
    timed = _timed(training_step(model, images, loss=loss, precision=precision), device)

    def run() -> float:
        with torch.inference_mode(False), torch.enable_grad():
            return timed()

    yield run


def _timed(run: Callable[[], object], device: torch.device) -> Callable[[], float]:
    def timed() -> float:
        start = time.perf_counter()
        run()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter() - start

    return timed


def _memory_format(model: nn.Module) -> torch.memory_format:
    """Channels-last if a convolution's weights are; 1x1 kernels are in both formats."""
    weights = (p for p in model.parameters() if p.ndim == 4 and not p.is_contiguous())
    channels_last = any(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    return torch.channels_last if channels_last else torch.contiguous_format


def _take_rounds(
    prepared: Mapping[str, TimedPass],
    seconds: float,
    *,
    errors: dict[str, str] | None,
    observer: OnTiming | None = None,
) -> dict[str, list[float]]:
    """Seconds of each pass by round; fewer for one that fails.

    Args:
        prepared: by name, the context of a function that runs the pass once.
        seconds: per pass.
        errors: collects failures by name; None raises the first one.
        observer: see `compare`.
    """

    @contextmanager
    def noting_failure(name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if errors is None:
                raise
            errors[name] = describe_failure(error)

    passes: dict[str, Callable[[], float]] = {}
    with ExitStack() as stack:
        for i, (name, timed_pass) in enumerate(prepared.items()):
            if observer:
                observer(f"warming up {name}", WARM_UP_FRACTION * i / len(prepared))
            with noting_failure(name), ExitStack() as own:
                run = own.enter_context(timed_pass)
                _warm_up(run, seconds)
                passes[name] = run
                stack.push(own.pop_all())
        return _interleave(passes, seconds * len(passes), noting_failure, observer)


def _interleave(
    passes: Mapping[str, Callable[[], float]],
    seconds: float,
    noting_failure: Callable[[str], AbstractContextManager[None]],
    observer: OnTiming | None,
) -> dict[str, list[float]]:
    order, shuffle = list(passes), random.Random(0).shuffle
    times: dict[str, list[float]] = {name: [] for name in passes}
    start = time.perf_counter()
    done, rounds = 0.0, 0
    while order and (rounds < MIN_ROUNDS or done < 1):
        if observer:
            observer(f"round {rounds + 1}", WARM_UP_FRACTION + (1 - WARM_UP_FRACTION) * min(1.0, done))
        shuffle(order)
        for name in order:
            with noting_failure(name):
                times[name].append(passes[name]())
        rounds += 1
        order = [name for name in order if len(times[name]) == rounds]
        done = (time.perf_counter() - start) / max(seconds, 1e-9)
    return times


def _warm_up(run: Callable[[], float], seconds: float) -> None:
    """Run until three passes in a row are within 5 % of the fastest, or for `seconds`."""
    run()  # compiles, selects kernels, allocates memory
    deadline = time.perf_counter() + seconds
    fastest, steady = run(), 0
    while steady < 3 and time.perf_counter() < deadline:
        elapsed = run()
        steady = steady + 1 if 0.95 * fastest <= elapsed <= 1.05 * fastest else 0
        fastest = min(fastest, elapsed)


def _summary(times: Sequence[float], batch_size: int) -> Timing:
    low, median, high = (1000 * t for t in statistics.quantiles(times, n=4, method="inclusive"))
    return Timing(median, low, high, 1000 * batch_size / median, len(times))


def _figures(times: Sequence[float], batch_size: int) -> dict[str, Any]:
    timing = _summary(times, batch_size)
    return {
        "ms": timing.median_ms,
        "ms_low": timing.low_ms,
        "ms_high": timing.high_ms,
        "images_per_s": timing.images_per_s,
        "rounds": timing.rounds,
    }
