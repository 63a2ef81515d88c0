"""Costs of models, measured before training, and the training time estimated from them."""

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from glocal.bench import count_macs, count_params, describe_environment, torch_threads
from glocal.comparison import ComparisonObserver, ComparisonSettings, Run
from glocal.comparison.processes import share_cores
from glocal.comparison.run_tasks import RunTasks
from glocal.comparison.store import Store
from glocal.data import DataSource

TIMED_STEPS = 5
RUN_SECONDS = 3.0
"""Overhead of a run beside training steps and evaluations: process, model, record. Measured: docs/claims.md."""
FORWARD = 1 / 3
"""Time of an evaluation relative to a training step on as many images."""


@dataclass(frozen=True)
class Costs:
    """Costs of models, and the division of the cores.

    Attributes:
        costs: ``params``, ``macs``, ``peak_memory_mib`` and ``step_seconds`` by model.
        jobs: number of parallel runs.
        threads: per run.
    """

    costs: dict[str, dict[str, Any]]
    jobs: int
    threads: int

    @property
    def macs(self) -> dict[str, int]:
        """MACs by model."""
        return {model: costs["macs"] for model, costs in self.costs.items()}


def measure_costs(
    settings: ComparisonSettings, tasks: RunTasks, store: Store, side_by_side: bool, observer: ComparisonObserver
) -> Costs:
    """Measure the models without costs in a folder.

    The division of the cores stays that of the first call: a resumed run is identical only with the same number of
    threads.
    """
    saved = store.costs()
    known = Costs(**saved) if saved is not None else None
    by_model = dict(known.costs) if known else {}
    missing = [model for model in settings.models if model not in by_model]
    if missing:
        observer.say(f"Measuring {len(missing)} models: parameters, multiply-accumulates, memory, a training step ...")
    for name in missing:
        task = tasks.of_model(name)
        model = task.create_model()
        by_model[name] = {
            "params": count_params(model),
            "macs": count_macs(model, settings.image_size),
            "peak_memory_mib": tasks.training_memory(task, model),
        }
    jobs, threads = (known.jobs, known.threads) if known else _share(by_model, settings, tasks, side_by_side)
    with torch_threads(threads):
        for name in missing:
            by_model[name]["step_seconds"] = step_seconds(tasks.of_model(name).create_model(), settings)
    costs = Costs(by_model, jobs, threads)
    store.save_costs(asdict(costs))
    return costs


def _share(
    by_model: dict[str, dict[str, Any]], settings: ComparisonSettings, tasks: RunTasks, side_by_side: bool
) -> tuple[int, int]:
    if not side_by_side:
        return 1, torch.get_num_threads()
    machine = describe_environment()
    run_mib = max((costs["peak_memory_mib"] for costs in by_model.values()), default=0) + tasks.kept_bytes / 2**20
    return share_cores(machine["cores"], machine["cores"], machine["memory_gib"] * 1024, run_mib)


def step_seconds(model: Any, settings: ComparisonSettings) -> float:
    """Seconds of the fastest of a few training steps, without the optimizer."""
    size, device = settings.image_size, torch.device(settings.device)
    model = model.to(device=device, memory_format=torch.channels_last).train()
    images = torch.randn(settings.recipe.data.batch_size, 3, size, size, device=device)
    seconds = []
    for _ in range(1 + TIMED_STEPS):
        start = time.perf_counter()
        model(images).square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def seconds_needed(runs: Iterable[Run], settings: ComparisonSettings, data: DataSource, costs: Costs) -> float:
    """Expected wall-clock seconds of runs.

    Args:
        runs: to train.
        settings: of runs on the whole training set; on a fraction a run takes as many steps.
        data: the data set.
        costs: of the models.
    """
    batch = settings.recipe.data.batch_size
    per_epoch = -(-len(data.train) // batch)
    total = 0.0
    assert settings.budget is not None  # claims train
    for run in runs:
        of_model = costs.costs[run.model]
        steps = settings.budget.steps(len(data.train), per_epoch, of_model["macs"])
        if steps is None:
            total += settings.budget.amount + RUN_SECONDS
            continue
        tests = max(1, min(10, round(steps / per_epoch)))
        total += of_model["step_seconds"] * (steps + FORWARD * tests * len(data.val) / batch) + RUN_SECONDS
    return total / costs.jobs
