"""What each model of a comparison costs, measured once and side by side before any of them is trained."""

from collections.abc import Mapping
from typing import Any

from glocal.bench import count_macs, count_params, measure_together, peak_training_memory
from glocal.comparison.settings import Settings
from glocal.training import heads

TIMING_SECONDS = 1.0
"""For each model at each batch size, its warm-up not counted."""

Costs = dict[str, dict[str, Any]]


def count_costs(models: Mapping[str, Any], settings: Settings) -> Costs:
    """Parameters, MACs and training memory by model; in a linear probe only the head is trained."""
    size = settings.image_size
    costs = {}
    for name, model in models.items():
        if settings.mode == "probe":
            model.requires_grad_(False)
            for head in heads(model):
                head.requires_grad_(True)
        costs[name] = {
            "params": count_params(model),
            "macs": count_macs(model, size),
            "peak_memory_mib": peak_training_memory(
                model, (settings.recipe.batch_size, 3, size, size), settings.device
            ),
        }
    return costs


def time_inference(models: Mapping[str, Any], settings: Settings) -> Costs:
    """Inference at batch 1 and 32 by model; an untrained model is as fast as a trained one."""
    size, device = settings.image_size, settings.device
    single = measure_together(models, size, 1, device, seconds=TIMING_SECONDS)
    batch = measure_together(models, size, 32, device, seconds=TIMING_SECONDS)
    return {
        name: {"latency_ms_b1": single[name].median_ms, "images_per_s_b32": batch[name].images_per_s} for name in models
    }
