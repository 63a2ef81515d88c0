"""What each model of a comparison costs, measured once and side by side before any of them is trained."""

from collections.abc import Mapping
from typing import Any

from glocal.bench import count_macs, count_params, measure_together, peak_training_memory
from glocal.comparison.settings import Settings

TIMING_SECONDS = 1.0
"""For each model at each batch size, its warm-up not counted."""


def measure_costs(models: Mapping[str, Any], settings: Settings) -> dict[str, dict[str, Any]]:
    """Parameters, MACs, inference time and training memory of untrained models, which are those of trained ones.

    Args:
        models: by name.
        settings: image size, batch size and device to measure at; in a linear probe only the head is trained.
    """
    size, device = settings.image_size, settings.device
    single = measure_together(models, size, 1, device, seconds=TIMING_SECONDS)
    batch = measure_together(models, size, 32, device, seconds=TIMING_SECONDS)
    costs = {}
    for name, model in models.items():
        if settings.mode == "probe":
            model.requires_grad_(False)
            model.get_classifier().requires_grad_(True)
        shape = (settings.recipe.batch_size, 3, size, size)
        costs[name] = {
            "params": count_params(model),
            "macs": count_macs(model, size),
            "latency_ms_b1": single[name].median_ms,
            "images_per_s_b32": batch[name].images_per_s,
            "peak_memory_mib": peak_training_memory(model, shape, device),
        }
    return costs
