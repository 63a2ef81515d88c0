"""The race of a comparison in its folder. Looks are computed from the records of the runs: nothing else is kept."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from glocal.comparison.cheapest import cost_bounds
from glocal.comparison.execution import has_finished
from glocal.comparison.race import Look, Race, Racer, Rung, rungs
from glocal.comparison.settings import ComparisonSettings, Run
from glocal.comparison.store import Store
from glocal.schema import CurveRow, RaceResults, RecordedRun


class Pause(NamedTuple):
    """A run at a rung: its entry, and the evidence of its predictions."""

    entry: RecordedRun
    evidence: Any


class RaceRunner:
    """Executes the legs of a race, and looks.

    Args:
        settings: of the comparison.
        store: its folder.
        costs: measured, by model.
        entries: of the runs with a record, by id; kept up to date by the caller.
    """

    def __init__(
        self,
        settings: ComparisonSettings,
        store: Store,
        costs: Mapping[str, Mapping[str, Any]],
        entries: Mapping[str, RecordedRun],
    ) -> None:
        self.settings, self.store, self.entries, self.costs = settings, store, entries, costs
        batch = settings.metric.words.batch
        self.race = Race(
            {model: cost_bounds(costs[model], settings.cost, batch) for model in settings.models},
            rungs(len(settings.seeds), settings.num_evaluations),
        )
        self.pauses: dict[tuple[str, float], Pause] = {}

    def run(self, execute: Callable[[Sequence[Run], float], None], tell: Callable[[Look], None]) -> None:
        """Train and look until the race is over.

        Args:
            execute: trains runs up to a fraction of their budget.
            tell: is given each look.
        """
        while (rung := self.race.rung) is not None:
            if missing := self._missing(rung):
                execute(missing, rung.done)
                self._drop_failed()
            elif (look := self._look(rung)) is not None:
                tell(look)

    def results(self) -> RaceResults:
        """What was seen so far."""
        race = self.race
        return {
            "rungs": [list(rung) for rung in race.ladder],
            "looks": [
                {
                    "seeds": look.seeds,
                    "done": look.done,
                    "confidence": look.confidence,
                    "standings": [
                        {
                            "model": one.model,
                            "score": one.score,
                            "difference": one.difference,
                            "difference_ci": [one.low, one.high],
                            "expected": one.expected,
                            "left": one.left,
                            "to": one.to,
                        }
                        for one in look.standings
                    ],
                }
                for look in race.looks
            ],
            "finished": race.rung is None,
            "still": list(race.still),
            "curves": self._curves(),
            "share": self._share(),
        }

    def _missing(self, rung: Rung) -> list[Run]:
        runs = [self._run(leg.model, leg.seed) for leg in self.race.legs()]
        return [run for run in runs if self._pause(run, rung.done) is None]

    def _look(self, rung: Rung) -> Look | None:
        racers = {}
        for model in self.race.still:
            pauses = [self._pause(self._run(model, seed), rung.done) for seed in range(rung.seeds)]
            reached = [pause for pause in pauses if pause is not None]
            curve = mean_curve([pause.entry["curve"] for pause in reached], rung.done)
            racers[model] = Racer(self.settings.metric.gather([pause.evidence for pause in reached]), curve)
        return self.race.look(racers) if racers else None

    def _drop_failed(self) -> None:
        self.race.failed.update(entry["model"] for entry in self.entries.values() if entry["status"] == "failed")

    def _run(self, model: str, seed: int) -> Run:
        return Run(model, self.settings.fractions[0], self.settings.seeds[seed])

    def _pause(self, run: Run, done: float) -> Pause | None:
        """A run at a rung, if it has been there."""
        if (run.id, done) in self.pauses:
            return self.pauses[run.id, done]
        metric, store = self.settings.metric, self.store
        if done < 1:
            entry, folder = store.pause(run.id, done), store.at(run.id, done)
        else:
            entry, folder = self.entries.get(run.id), store.runs / run.id
            entry = entry if has_finished(entry) else None
        if entry is None:
            return None
        self.pauses[run.id, done] = Pause(entry, metric.load(folder))
        return self.pauses[run.id, done]

    def _curves(self) -> dict[str, list[list[float]]]:
        """The mean curve of each model over the seeds of its last look, as (fraction of the budget, score)."""
        last = {one.model: look for look in self.race.looks for one in look.standings}
        curves = {}
        for model, look in last.items():
            pauses = [self._pause(self._run(model, seed), look.done) for seed in range(look.seeds)]
            rows = [pause.entry["curve"] for pause in pauses if pause is not None]
            curves[model] = [list(point) for point in mean_curve(rows, look.done)]
        return curves

    def _share(self) -> float:
        """Of the FLOP of all runs, those that were trained."""
        furthest: dict[str, float] = {}
        for run_id, done in self.pauses:
            furthest[run_id] = max(done, furthest.get(run_id, 0.0))
        runs = [self._run(model, seed) for model in self.settings.models for seed in range(len(self.settings.seeds))]
        spent = sum(furthest.get(run.id, 0.0) * self.costs[run.model]["macs"] for run in runs)
        return spent / sum(self.costs[run.model]["macs"] for run in runs)


def mean_curve(curves: Sequence[Sequence[CurveRow]], done: float) -> list[tuple[float, float]]:
    """The mean score over seeds at each evaluation, as (fraction of the budget, score).

    Args:
        curves: one for each seed, evaluated at the same steps.
        done: the fraction of the budget at their end.
    """
    last = curves[0][-1]["step"]
    return [
        (done * points[0]["step"] / last, float(np.mean([point["val_score"] for point in points])))
        for points in zip(*curves, strict=False)
    ]
