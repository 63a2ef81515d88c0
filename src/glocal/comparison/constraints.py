"""The limits of a comparison: which models meet them before training, and whether the chosen one does after it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glocal.comparison.cheapest import RANGE
from glocal.comparison.costs import Costs
from glocal.comparison.deployment import check_again, measure, saved_bytes
from glocal.comparison.limits import ERROR, FILE, MEMORY, PARAMS, CostLimits, margins, meets, none_meets
from glocal.comparison.run_tasks import RunTasks
from glocal.comparison.settings import ComparisonSettings
from glocal.errors import GlocalError
from glocal.schema import ConfirmedLimits, LimitCosts, LimitsResults


def deployment_costs(models: Mapping[str, Any], settings: ComparisonSettings, tasks: RunTasks) -> Costs:
    """Costs that limits need beside those of every comparison, by model: size of the file, time in the runtime.

    Args:
        models: as created, by name.
        settings: of the comparison.
        tasks: of its runs.

    Raises:
        GlocalError: if the runtime is not installed.
    """

    def save(name: str, model: Any, folder: Path) -> None:
        tasks.of_model(name).save(model, folder)

    limits = settings.limits
    if limits.runtime == "eager" and limits.batch_size == 1:  # its time is measured in every comparison
        return {name: {FILE: saved_bytes(name, model, save)} for name, model in models.items()}
    sizes = {name: settings.size_of(name) for name in models}
    return measure(models, sizes, settings.device, limits, save=save)


class Constraints:
    """How the models of a comparison stand to its limits.

    Args:
        limits: of the comparison.
        costs: of every comparison, by model.
        deployment: of `deployment_costs`; empty if they are not needed.

    Attributes:
        reasons: by model, why it does not meet the limits; empty if it does.
        confirmed: of the chosen model, measured again after training.
    """

    def __init__(
        self, limits: CostLimits, costs: Mapping[str, Mapping[str, Any]], deployment: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self.limits = limits
        self.costs = {name: {**of_model, **deployment.get(name, {})} for name, of_model in costs.items()}
        self.reasons = {name: meets(limits, of_model) for name, of_model in self.costs.items()}
        self.confirmed: ConfirmedLimits | None = None

    @property
    def candidates(self) -> tuple[str, ...]:
        """The models that meet the limits, in the order of the comparison."""
        return tuple(name for name, reasons in self.reasons.items() if not reasons)

    def check(self) -> None:
        """Check that a model is left.

        Raises:
            GlocalError: naming the one that is the least above the limits.
        """
        if not self.candidates:
            raise GlocalError(none_meets(self.limits, self.costs))

    def notes(self) -> list[str]:
        """A note on each model that is left out."""
        return [f"left out: {name}: {'; '.join(reasons)}" for name, reasons in self.reasons.items() if reasons]

    def confirm(self, model: str, run_id: str, folder: Path, device: str) -> None:
        """Measure the chosen model again, from the files of a run.

        Args:
            model: its name.
            run_id: of one of its runs.
            folder: of the run.
            device: of the runtime ``eager``.

        Raises:
            CheckpointError: if the folder has no model.
        """
        again = check_again(folder, self.limits, device)
        costs = {MEMORY: self.costs[model][MEMORY], **again.costs}
        self.confirmed = {
            "model": model,
            "run": run_id,
            "costs": self._shown(costs),
            "reasons": again.reasons,
            "margins": [] if again.reasons else margins(self.limits, costs),
        }

    def results(self) -> LimitsResults:
        """For the results."""
        limits = self.limits
        return {
            "asked": {
                "latency_ms": limits.latency_ms,
                "params": limits.params,
                "file_bytes": limits.file_bytes,
                "memory_mib": limits.memory_mib,
                "runtime": limits.runtime,
                "batch_size": limits.batch_size,
            },
            "models": [
                {"model": name, "costs": self._shown(costs), "reasons": self.reasons[name]}
                for name, costs in self.costs.items()
            ],
            "confirmed": self.confirmed,
        }

    def _shown(self, costs: Mapping[str, Any]) -> LimitCosts:
        """Costs under names that do not depend on the runtime."""
        key = self.limits.latency_key
        return {
            "latency_ms": costs.get(key),
            "latency_range": costs.get(f"{key}{RANGE}"),
            "params": costs[PARAMS],
            "file_bytes": costs.get(FILE),
            "memory_mib": costs.get(MEMORY),
            "error": costs.get(ERROR),
        }
