"""How long a forward pass takes: models measured side by side, in interleaved rounds of one process.

On a shared machine absolute times drift by tens of percent within minutes. Models timed in turn, round by round, drift
together, so their order and ratios hold where those of separate measurements do not.
"""

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from glocal.errors import GlocalError

MIN_ROUNDS = 5


@dataclass(frozen=True)
class Timing:
    """Time of one forward pass of one batch.

    Attributes:
        median_ms: median over the rounds, in milliseconds.
        low_ms: first quartile.
        high_ms: third quartile.
        images_per_s: batch size over the median.
        rounds: how many passes were timed.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    images_per_s: float
    rounds: int


def measure_inference(
    model: nn.Module,
    image_size: int | tuple[int, int] = 224,
    batch_size: int = 1,
    device: str | torch.device = "cpu",
    *,
    in_chans: int = 3,
    seconds: float = 2.0,
) -> Timing:
    """Time the forward pass of one model; see `measure_together`, which is the fair way to compare several."""
    timings = measure_together({"": model}, image_size, batch_size, device, in_chans=in_chans, seconds=seconds)
    return timings[""]


def measure_together(
    models: Mapping[str, nn.Module],
    image_size: int | tuple[int, int] = 224,
    batch_size: int = 1,
    device: str | torch.device = "cpu",
    *,
    in_chans: int = 3,
    seconds: float = 2.0,
) -> dict[str, Timing]:
    """Time the forward passes of several models in interleaved rounds.

    Each round runs every model once, in an order shuffled anew, in eval mode and inference mode; a time runs from the
    call until the device has finished. A model whose convolutions are channels-last gets its images so. Afterwards
    every module is back in its mode and on its device.

    Args:
        models: by name; each takes (batch_size, in_chans, H, W).
        image_size: side of a square image, or (H, W), in pixels.
        batch_size: images in one pass.
        device: where to run, such as "cpu" or "cuda".
        in_chans: channels of the images.
        seconds: time to spend on each model, its warm-up not included; `MIN_ROUNDS` rounds are run in any case.

    Raises:
        GlocalError: without a model, or with a batch size below 1.
    """
    if not models or batch_size < 1:
        raise GlocalError(f"expected at least one model and one image, got {len(models)} and {batch_size}")
    device = torch.device(device)
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    images = torch.rand(batch_size, in_chans, height, width, generator=torch.Generator().manual_seed(0))
    with ExitStack() as stack, torch.inference_mode():
        passes = {name: stack.enter_context(_timed_pass(model, images, device)) for name, model in models.items()}
        for timed_pass in passes.values():
            _warm_up(timed_pass, seconds)
        times = _interleave(passes, seconds * len(models))
    return {name: _summary(times[name], batch_size) for name in models}


@contextmanager
def _timed_pass(model: nn.Module, images: torch.Tensor, device: torch.device) -> Iterator[Callable[[], float]]:
    """A function that runs the model once and returns its seconds; the model is put back as it was found."""
    training = {module: module.training for module in model.modules()}
    first = next(model.parameters(), torch.empty(0))
    home = first.device
    try:
        model.eval().to(device)
        images = images.to(device, first.dtype, memory_format=_memory_format(model))

        def run() -> float:
            start = time.perf_counter()
            model(images)
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            return time.perf_counter() - start

        yield run
    finally:
        model.to(home)
        for module, mode in training.items():
            module.training = mode


def _memory_format(model: nn.Module) -> torch.memory_format:
    """Channels-last if a convolution's weights are; a 1x1 kernel is in both formats and says nothing."""
    weights = (p for p in model.parameters() if p.ndim == 4 and not p.is_contiguous())
    channels_last = any(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    return torch.channels_last if channels_last else torch.contiguous_format


def _warm_up(run: Callable[[], float], seconds: float) -> None:
    """Run until three passes in a row are within 5 % of the fastest, or for `seconds`."""
    deadline = time.perf_counter() + seconds
    fastest, steady = run(), 0
    while steady < 3 and time.perf_counter() < deadline:
        elapsed = run()
        steady = steady + 1 if 0.95 * fastest <= elapsed <= 1.05 * fastest else 0
        fastest = min(fastest, elapsed)


def _interleave(passes: Mapping[str, Callable[[], float]], seconds: float) -> dict[str, list[float]]:
    order, shuffle = list(passes), random.Random(0).shuffle
    times: dict[str, list[float]] = {name: [] for name in passes}
    deadline = time.perf_counter() + seconds
    while len(times[order[0]]) < MIN_ROUNDS or time.perf_counter() < deadline:
        shuffle(order)
        for name in order:
            times[name].append(passes[name]())
    return times


def _summary(times: list[float], batch_size: int) -> Timing:
    low, median, high = (1000 * t for t in statistics.quantiles(times, n=4, method="inclusive"))
    return Timing(median, low, high, 1000 * batch_size / median, len(times))
