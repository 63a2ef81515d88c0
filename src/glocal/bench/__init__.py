"""Benchmarks of models: parameters, MACs, speed, memory, and a description of the machine."""

from glocal.bench.environment import describe_environment, torch_threads
from glocal.bench.limits import Limits, measure_limits
from glocal.bench.macs import copy_on_meta, count_macs, count_params
from glocal.bench.memory import peak_inference_memory, peak_training_memory
from glocal.bench.speed import Row, Timing, compare, measure_inference, measure_together, paired_ratio

__all__ = [
    "Limits",
    "Row",
    "Timing",
    "compare",
    "copy_on_meta",
    "count_macs",
    "count_params",
    "describe_environment",
    "measure_inference",
    "measure_limits",
    "measure_together",
    "paired_ratio",
    "peak_inference_memory",
    "peak_training_memory",
    "torch_threads",
]
