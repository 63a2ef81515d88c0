"""What a model costs: parameters, multiply-accumulates, speed, memory; and on which machine that was measured."""

from glocal.bench.environment import describe_environment
from glocal.bench.macs import copy_on_meta, count_macs, count_params
from glocal.bench.memory import peak_training_memory
from glocal.bench.speed import Timing, measure_inference, measure_together

__all__ = [
    "Timing",
    "copy_on_meta",
    "count_macs",
    "count_params",
    "describe_environment",
    "measure_inference",
    "measure_together",
    "peak_training_memory",
]
