"""Costs of the models of a comparison, measured once before training, in interleaved rounds."""

from collections.abc import Mapping
from typing import Any

from glocal.bench import count_params, measure_together
from glocal.comparison.cheapest import RANGE
from glocal.comparison.run_tasks import RunTasks
from glocal.comparison.settings import ComparisonSettings

TIMING_SECONDS = 1.0
"""Per model and batch size, without warm-up."""

Costs = dict[str, dict[str, Any]]


def count_costs(models: Mapping[str, Any], tasks: RunTasks) -> Costs:
    """Parameters, MACs and training memory by model."""
    costs = {}
    for name, model in models.items():
        task = tasks.of_model(name)
        costs[name] = {
            "params": count_params(model),
            "macs": task.count_macs(model),
            "peak_memory_mib": tasks.training_memory(task, model),
        }
    return costs


def time_inference(models: Mapping[str, Any], settings: ComparisonSettings, batch_size: int) -> Costs:
    """Inference at batch 1 and at a larger batch size, by model.

    An untrained model is as fast as a trained one, except that an untrained detector has fewer detections for NMS.
    """
    sizes, device = {name: settings.size_of(name) for name in models}, settings.device
    single = measure_together(models, sizes, 1, device, seconds=TIMING_SECONDS)
    batch = measure_together(models, sizes, batch_size, device, seconds=TIMING_SECONDS)
    throughput = f"images_per_s_b{batch_size}"
    return {
        name: {
            "latency_ms_b1": single[name].median_ms,
            f"latency_ms_b1{RANGE}": [single[name].low_ms, single[name].high_ms],
            throughput: batch[name].images_per_s,
            f"{throughput}{RANGE}": [1000 * batch_size / ms for ms in (batch[name].high_ms, batch[name].low_ms)],
        }
        for name in models
    }
