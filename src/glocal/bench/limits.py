"""Measured peak performance of a machine: matrix product throughput and memory bandwidth."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from glocal.bench.passes import PRECISIONS

COPIED_BYTES = 2**28
"""Larger than most CPU caches."""


@dataclass(frozen=True)
class Product:
    """A matrix product for benchmarks.

    Attributes:
        name: its shape.
        macs: multiply-accumulates.
        run: computes it once.
    """

    name: str
    macs: int
    run: Callable[[], object]

    def gflops(self, seconds: float) -> float:
        """GFLOP/s (two operations per multiply-accumulate) for this duration."""
        return 2 * self.macs / seconds / 1e9


@dataclass(frozen=True)
class Limits:
    """The best of several measurements.

    Attributes:
        gflops: GFLOP/s of the fastest product.
        product: its name.
        gb_per_s: GB/s of a memory copy, counting bytes read and written.
    """

    gflops: float
    product: str
    gb_per_s: float


def matrix_products(device: str | torch.device = "cpu", *, precision: str = "32") -> list[Product]:
    """Products likely to reach a device's peak: square, a Transformer layer, a 3x3 convolution.

    They are computed by different libraries, whose efficiency varies by processor.

    Args:
        device: of the products.
        precision: "32", "bf16" or "fp16".
    """
    device, dtype = torch.device(device), PRECISIONS[precision] or torch.float32

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)

    # large enough to fill the device, small enough for several tries
    side, batch = (1024, 8) if device.type == "cpu" else (8192, 512)
    square, tokens, weight, kernel = (
        random(side, side), random(197 * batch, 384), random(1536, 384), random(256, 256, 3, 3)
    )  # fmt: skip
    maps = random(batch, 256, 14, 14).contiguous(memory_format=torch.channels_last)
    return [
        Product(f"{side} x {side} x {side}", side**3, lambda: square @ square),
        Product(f"{197 * batch} x 384 x 1536", 197 * batch * 384 * 1536, lambda: F.linear(tokens, weight)),
        Product("3x3 convolution", batch * 196 * 256 * 256 * 9, lambda: F.conv2d(maps, kernel, padding=1)),
    ]


@torch.inference_mode()
def fastest_product(device: str | torch.device = "cpu", *, precision: str = "32", seconds: float = 0.6) -> Product:
    """The fastest of `matrix_products`, each timed for a third of the seconds."""
    device = torch.device(device)
    products = matrix_products(device, precision=precision)
    return max(products, key=lambda product: product.gflops(_least_seconds(product.run, device, seconds / 3)))


@torch.inference_mode()
def measure_limits(device: str | torch.device = "cpu", *, precision: str = "32", seconds: float = 1.0) -> Limits:
    """Matrix product throughput and memory bandwidth, with torch's current threads and settings.

    On a shared machine they hold only at the time of measurement.

    Args:
        device: to measure.
        precision: of the products: "32", "bf16" or "fp16".
        seconds: approximate duration.
    """
    device = torch.device(device)
    product = fastest_product(device, precision=precision, seconds=0.6 * seconds)
    gflops = product.gflops(_least_seconds(product.run, device, 0.2 * seconds))
    return Limits(gflops, product.name, memory_bandwidth(device, seconds=0.2 * seconds))


def memory_bandwidth(device: str | torch.device = "cpu", *, seconds: float = 0.2) -> float:
    """GB/s of a memory copy, counting bytes read and written."""
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED_BYTES / _least_seconds(lambda: target.copy_(source), source.device, seconds) / 1e9


def _least_seconds(run: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Fastest of the runs within ``seconds``; the slower first run counts only if it is the only one."""
    least, deadline = float("inf"), time.perf_counter() + seconds
    for tries in itertools.count():
        start = time.perf_counter()
        run()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        end = time.perf_counter()
        least = min(least, end - start) if tries != 1 else end - start
        if end > deadline:
            break
    return least
