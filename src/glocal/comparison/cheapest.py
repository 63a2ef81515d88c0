"""Which of several equally accurate models is the cheapest, by what has been measured."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from glocal.formatting import significant

RANGE = "_range"
"""Suffix of the first and third quartile of a measured time."""

CostName = Literal["latency", "throughput", "memory", "macs"]


def cost_key(cost: CostName, batch_size: int) -> str:
    """The key of a cost in a row of results; of throughput at this batch size."""
    keys = {"latency": "latency_ms_b1", "throughput": f"images_per_s_b{batch_size}", "memory": "peak_memory_mib"}
    return keys.get(cost, cost)


def cheapest_of(rows: Sequence[Any], cost: CostName, batch_size: int) -> Any:
    """The cheapest of some models by a measured cost; of those that do not differ by more than its noise, the first.

    Args:
        rows: of a summary, the most accurate first.
        cost: where throughput is better the higher it is, and the others the lower.
        batch_size: of throughput.
    """
    key, sign = cost_key(cost, batch_size), -1 if cost == "throughput" else 1
    _, limit = cost_bounds(min(rows, key=lambda row: sign * row[key]), cost, batch_size)
    return next(row for row in rows if cost_bounds(row, cost, batch_size)[0] <= limit)


def cost_bounds(row: Mapping[str, Any], cost: CostName, batch_size: int) -> tuple[float, float]:
    """Lowest and highest measured cost, the quartiles of a time; of throughput, negative."""
    key = cost_key(cost, batch_size)
    bounds = row.get(f"{key}{RANGE}") or [row[key], row[key]]
    low, high = sorted(-value if cost == "throughput" else value for value in bounds)
    return low, high


def costs_in_words(less: Mapping[str, Any], more: Mapping[str, Any], cost: CostName, batch_size: int) -> str:
    """Such as "5.6 against 9.1 ms per image at batch 1"."""
    unit = {
        "latency": "ms per image at batch 1",
        "throughput": f"images/s at batch {batch_size}",
        "memory": "MiB of memory in training",
        "macs": "M multiply-accumulates",
    }[cost]
    scale = 1e6 if cost == "macs" else 1
    values = (significant(row[cost_key(cost, batch_size)] / scale) for row in (less, more))
    return f"{' against '.join(values)} {unit}"
