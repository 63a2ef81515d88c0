"""Run a comparison: measure costs, train and evaluate all runs, write results and report."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import torch

from glocal.bench import describe_environment, torch_threads
from glocal.comparison import analysis
from glocal.comparison.cheapest import RANGE
from glocal.comparison.constraints import Constraints, deployment_costs
from glocal.comparison.costs import Costs, count_costs, time_inference
from glocal.comparison.execution import Runner, has_finished
from glocal.comparison.final_test import run_final_test
from glocal.comparison.metric import Metric
from glocal.comparison.pictures import pictures
from glocal.comparison.processes import Event, check_main_module, run_side_by_side, share_cores
from glocal.comparison.race import Look, Race, verdict_confidence
from glocal.comparison.racing import RaceRunner
from glocal.comparison.run_tasks import SPLIT_SEED, RunTasks
from glocal.comparison.settings import ComparisonSettings, Run
from glocal.comparison.statistics import CONFIDENCE
from glocal.comparison.store import COSTS_HOLD, FEATURES, Store, open_store
from glocal.comparison.trials import chosen_rates, held_out, trial_results, trial_runs
from glocal.comparison.verdict import choice_of, judge, rows_outside, summarise
from glocal.data import DataSource, DetectionSource, SegmentationSource
from glocal.errors import GlocalError
from glocal.files import atomic_write_text
from glocal.report import write_csv, write_report
from glocal.schema import (
    CompareData,
    CompareExtras,
    CompareResults,
    CompareSettings,
    FinalTest,
    RaceResults,
    RecordedRun,
    RunEntry,
    SkippedImage,
    SummaryRow,
)
from glocal.training import TrainingProgress
from glocal.version import __version__

SCHEMA = "glocal.compare/1"
Source = DataSource | DetectionSource | SegmentationSource


class ComparisonObserver(Protocol):
    """Receives the progress of a comparison."""

    def say(self, text: str) -> None:
        """A note for the user."""

    def start(self, run: Run, number: int, total: int) -> None:
        """Start of run ``number`` of ``total``, counted from 1; others may be running."""

    def update(self, run: Run, progress: TrainingProgress) -> None:
        """After steps of the run."""

    def look(self, run: Run, share: float) -> None:
        """Progress of the analysis of the run's model, from 0 to 1."""

    def finish(self, run: Run, entry: RecordedRun) -> None:
        """End of a run, with its ``entry`` of the results; in a race also a pause."""

    def after_look(self, look: Look, race: Race) -> None:
        """After a look at the models of a race."""

    def publish(self, results: CompareResults) -> None:
        """The written results so far: after each run and at the end."""


class _Silent:
    """Shows nothing."""

    def say(self, text: str) -> None: ...
    def start(self, run: Run, number: int, total: int) -> None: ...
    def update(self, run: Run, progress: TrainingProgress) -> None: ...
    def look(self, run: Run, share: float) -> None: ...
    def finish(self, run: Run, entry: RecordedRun) -> None: ...
    def after_look(self, look: Look, race: Race) -> None: ...
    def publish(self, results: Any) -> None: ...


SILENT: ComparisonObserver = _Silent()


def compare(
    data: Source,
    settings: ComparisonSettings,
    out: Path,
    *,
    resume: bool = False,
    side_by_side: bool = False,
    analyze: bool = False,
    command: str = "glocal.comparison.compare",
    observer: ComparisonObserver | None = None,
) -> CompareResults:
    """Train and evaluate models under one recipe and budget, and decide which to take.

    Writes results.json, results.csv and report.html into ``out`` after each run.

    The record of a finished run is written atomically. After a stop, ``resume`` executes missing and failed runs; on a
    CPU, with a budget in epochs or FLOP, scores are the same as without the stop.

    Args:
        data: from `glocal.data.load_data`, `load_detection` or `load_segmentation`, by the task of the settings.
        settings: from `make_settings`.
        out: folder of the comparison.
        resume: resume the comparison in ``out``, or start one there.
        side_by_side: on a CPU, execute runs in parallel, each in its own process, which imports the calling script:
            its calls must be under ``if __name__ == "__main__":``.
        analyze: analyze one trained model per architecture after all runs (`analyze` of comparison/analysis.py). It
            changes no run, so a comparison without it can be resumed with it.
        command: recorded in the results.
        observer: receives progress; by default none.

    Returns:
        The contents of ``results.json``, see docs/results-schema.md.

    Raises:
        GlocalError: if a model cannot be created, ``out`` is not usable, the task does not support ``analyze``, or
            the processes of ``side_by_side`` cannot import the calling script.
    """
    if analyze and settings.task != "classification":
        raise GlocalError(f"analyze: expected a comparison of classifiers, got {settings.task}")
    observer = observer or SILENT
    side_by_side = side_by_side and settings.device == "cpu" and settings.mode != "probe"
    if side_by_side and not resume:
        check_main_module()  # before there is a folder, which only ``resume`` would accept
    tasks = RunTasks(settings, data, features=out / FEATURES)
    plan = {"schema": "glocal.plan/1", "data": data.fingerprint, **settings.describe()}
    models = {name: tasks.of_model(name).create_model() for name in settings.models}
    with open_store(out, plan, resume=resume) as store:
        measured = _measure(models, settings, tasks, store, side_by_side, observer)
        constraints = _constraints(models, settings, tasks, store, measured, observer)
        constraints.check()
        job = _Job(data, settings, tasks, store, measured, constraints, command, observer)
        for run_id, reason in store.damaged.items():
            observer.say(f"The record of {run_id} is damaged ({reason}): the run is repeated.")
        job.try_rates(side_by_side)
        job.run(side_by_side)
        if (job.conclude() or not job.executed) and not analyze:
            job.publish(job.results())
        for run_id, reason in {} if analyze else store.damaged_analyses.items():
            observer.say(f"The analysis of {run_id} is damaged ({reason}) and left out; --analyze repeats it.")
        if analyze:
            with torch_threads(measured.threads):
                analysis.analyze(job.analyzed(), data, settings, store, observer)  # type: ignore[arg-type]
            job.publish(job.results())
    assert job.published is not None
    return job.published


def write_results(results: CompareResults, data: Source, out: Path) -> None:
    """Write results.json, results.csv and report.html with its pictures."""
    atomic_write_text(out / "results.json", json.dumps(results, indent=1, allow_nan=False))
    write_csv(results, out / "results.csv")
    write_report(results, out, pictures=pictures(results, data, out))


def _described(data: Source, metric: Metric, skipped: list[SkippedImage]) -> CompareData:
    """The data, for the results."""
    counts = metric.data(data)
    described: CompareData = {
        "name": data.name,
        "classes": list(data.classes),
        "train": len(data.train),
        "val": len(data.val),
        "train_per_class": counts["train_per_class"],
        "val_per_class": counts["val_per_class"],
        "split": data.split,
        "fingerprint": data.fingerprint,
        "skipped": skipped,
        "warnings": list(data.warnings),
    }
    if isinstance(data, DataSource) and data.test is not None:
        described["test"] = len(data.test)
    return described


class _Measured(NamedTuple):
    """Costs by model, and the division of the cores: ``jobs`` parallel runs with ``threads`` each.

    Attributes:
        deployment: costs that limits needed, by `CostLimits.place` and model.
    """

    costs: Costs
    jobs: int
    threads: int
    deployment: Mapping[str, Costs] = {}

    def save(self, store: Store) -> None:
        """Save them in the folder."""
        saved = self._asdict()
        store.save_costs(saved if self.deployment else {key: saved[key] for key in COSTS_HOLD})


def _measure(
    models: Mapping[str, Any],
    settings: ComparisonSettings,
    tasks: RunTasks,
    store: Store,
    side_by_side: bool,
    observer: ComparisonObserver,
) -> _Measured:
    """Measure costs, or read them: a resumed run is identical only with the same number of threads."""
    saved = store.costs()
    if saved is not None:
        return _Measured(**saved)
    observer.say("Measuring parameters, multiply-accumulates, memory and speed side by side ...")
    costs = count_costs(models, tasks)
    jobs, threads = 1, torch.get_num_threads()
    if side_by_side:
        machine = describe_environment()
        run_mib = max(cost["peak_memory_mib"] for cost in costs.values()) + tasks.kept_bytes / 2**20
        num_runs = len(list(settings.runs()))
        jobs, threads = share_cores(num_runs, machine["cores"], machine["memory_gib"] * 1024, run_mib)
    with torch_threads(threads):
        for name, times in time_inference(models, settings, settings.metric.words.batch).items():
            costs[name] |= times
    measured = _Measured(costs, jobs, threads)
    measured.save(store)
    return measured


def _constraints(
    models: Mapping[str, Any],
    settings: ComparisonSettings,
    tasks: RunTasks,
    store: Store,
    measured: _Measured,
    observer: ComparisonObserver,
) -> Constraints:
    """How the models stand to the limits; what these need is measured if it has not been."""
    limits = settings.limits
    if limits.needs_deployment and limits.place not in measured.deployment:
        observer.say(f"Measuring size of the file and speed in {limits.runtime} ...")
        with torch_threads(measured.threads):
            costs = deployment_costs(models, settings, tasks)
        measured = measured._replace(deployment={**measured.deployment, limits.place: costs})
        measured.save(store)
    constraints = Constraints(limits, measured.costs, measured.deployment.get(limits.place, {}))
    if constraints.candidates:
        for note in constraints.notes():
            observer.say(note)
    return constraints


def execute_all(
    runner: Runner,
    runs: Sequence[Run],
    store: Store,
    jobs: int,
    threads: int,
    side_by_side: bool,
    tell: Callable[[Run, Event], None],
    until: float = 1.0,
) -> None:
    """Execute runs and call ``tell``: ``jobs`` at a time in separate processes, or one after the other in this one.

    They pause after the fraction ``until`` of their budget.
    """
    runner.tasks.load()
    if side_by_side:
        run_side_by_side(runner, runs, store, jobs, threads, tell, until)
        return
    with torch_threads(threads):
        for run in runs:
            tell(run, None)
            tell(run, runner.execute(run, store, partial(tell, run), until))


class _Job:
    """A comparison with its folder: runs and their records."""

    def __init__(
        self,
        data: Source,
        settings: ComparisonSettings,
        tasks: RunTasks,
        store: Store,
        measured: _Measured,
        constraints: Constraints,
        command: str,
        observer: ComparisonObserver,
    ) -> None:
        self.data, self.settings, self.tasks, self.store = data, settings, tasks, store
        self.measured, self.constraints, self.command, self.observer = measured, constraints, command, observer
        self.of_candidates = replace(settings, models=constraints.candidates)
        self.every = list(self.of_candidates.runs())
        self.entries: dict[str, RecordedRun] = {
            run.id: entry for run in settings.runs() if (entry := store.record(run.id)) is not None
        }
        self.evidence: dict[str, Any] = {}
        self.trials: dict[Run, RecordedRun] = {}
        self.executed = False
        self.test: FinalTest | None = None
        self.published: CompareResults | None = None
        self.racing: RaceRunner | None = None
        if self._races():
            self.racing = RaceRunner(self.of_candidates, store, measured.costs, self.entries)

    def try_rates(self, side_by_side: bool) -> None:
        """Execute the trials that are missing, and choose the learning rate of each model."""
        runs, store = trial_runs(self.of_candidates), self.store.trials
        self.trials = {run: entry for run in runs if (entry := store.record(run.id)) is not None}
        missing = [run for run in runs if run not in self.trials]
        if missing:
            total, number = len(runs), {run: len(self.trials) + i + 1 for i, run in enumerate(missing)}

            def tell(run: Run, event: Event) -> None:
                if event is None:
                    self.observer.start(run, number[run], total)
                elif isinstance(event, TrainingProgress):
                    self.observer.update(run, event)
                else:
                    self.trials[run] = event
                    self.observer.finish(run, event)

            measured = self.measured
            execute_all(self._runner(), missing, store, measured.jobs, measured.threads, side_by_side, tell)
        self.tasks.rates = chosen_rates({run: self.trials[run] for run in runs})

    def run(self, side_by_side: bool) -> None:
        """Execute what is missing: all runs, or a race."""
        missing = [run for run in self.every if not has_finished(self.entries.get(run.id))]
        if self.racing is not None:
            for run in missing:  # failed ones are tried again
                self.entries.pop(run.id, None)
            self.racing.run(partial(self._execute, side_by_side), self._looked)
        elif missing:
            self._execute(side_by_side, missing)

    def conclude(self) -> bool:
        """After the last run: measure the chosen model again, look at the test images; whether anything was done."""
        images = self.data.test if isinstance(self.data, DataSource) else None
        if not self.settings.limits and images is None:
            return False
        verdict = self.results()["verdict"]
        chosen, best = verdict["cheapest_tied"], verdict["most_accurate"]
        if chosen is None or best is None:
            return False
        runs, device = self._finished([chosen, best]), self.settings.device
        with torch_threads(self.measured.threads):
            if images is not None:
                names = list(dict.fromkeys([chosen, best]))
                self.test = run_final_test(names, runs, images, self.store.runs, device, self.observer.say)
            if self.settings.limits:
                run = next(run for run in runs if run.model == chosen)
                self.constraints.confirm(chosen, run.id, self.store.runs / run.id, device)
        return True

    def publish(self, results: CompareResults) -> None:
        """Write the results so far."""
        self.published = results
        write_results(results, self.data, self.store.out)
        self.observer.publish(results)

    def _races(self) -> bool:
        """Whether runs leave before their end: not in a folder whose finished runs never paused."""
        finished = [run for run in self.every if has_finished(self.entries.get(run.id))]
        alone = len(self.of_candidates.models) == 1
        if self.settings.search == "exhaustive" or alone or len(finished) == len(self.every):
            return False
        if all((self.store.paused / run.id).exists() for run in finished):
            return True
        self.observer.say("The finished runs of this folder were no race: all runs are executed.")
        return False

    def _execute(self, side_by_side: bool, runs: Sequence[Run], until: float = 1.0) -> None:
        """Execute runs up to a fraction of their budget."""
        self.executed = True
        runner, measured = self._runner(), self.measured
        number = {run.id: i + 1 for i, run in enumerate(runs)}
        before, total = (0, len(runs)) if self.racing else (len(self.every) - len(runs), len(self.every))

        def tell(run: Run, event: Event) -> None:
            if event is None:
                self.observer.start(run, before + number[run.id], total)
            elif isinstance(event, TrainingProgress):
                self.observer.update(run, event)
            else:
                if event["status"] != "paused":
                    self.entries[run.id] = event
                self.observer.finish(run, event)
                if event["status"] != "paused":
                    self.publish(self.results())

        execute_all(runner, runs, self.store, measured.jobs, measured.threads, side_by_side, tell, until)

    def _runner(self) -> Runner:
        macs = {name: cost["macs"] for name, cost in self.measured.costs.items()}
        return Runner(self.settings, self.tasks, macs)

    def _looked(self, look: Look) -> None:
        assert self.racing is not None
        self.observer.after_look(look, self.racing.race)
        self.publish(self.results())

    def analyzed(self) -> list[Run]:
        """The first finished run of each model on the largest fraction of the training set."""
        first: dict[str, Run] = {}
        for run in self._finished(self.settings.models):
            first.setdefault(run.model, run)
        return list(first.values())

    def _finished(self, models: Sequence[str]) -> list[Run]:
        """The finished runs of models on the largest fraction of the training set."""
        largest = max(self.settings.fractions)
        return [
            run
            for run in self.settings.runs()
            if run.model in models and run.fraction == largest and has_finished(self.entries.get(run.id))
        ]

    def results(self) -> CompareResults:
        """Results of the runs so far."""
        data, settings, metric = self.data, self.settings, self.settings.metric
        runs: list[RunEntry] = []
        went_bad: list[SkippedImage] = []
        for run in self.settings.runs():
            if run.id in self.entries:
                recorded = self.entries[run.id]
                entry = dict(recorded)
                if recorded["status"] != "ok":
                    entry |= metric.unscored
                entry.pop("skipped", None)
                went_bad += recorded.get("skipped", [])
                costs = self.measured.costs[run.model]
                costs = {name: costs[name] for key in metric.costs for name in (key, f"{key}{RANGE}") if name in costs}
                runs.append(cast(RunEntry, entry | costs))
                if recorded["status"] == "ok" and run.id not in self.evidence:
                    self.evidence[run.id] = metric.load(self.store.runs / run.id)
        race = None if self.racing is None else self.racing.results()
        within = [run for run in runs if run["model"] in self.of_candidates.models]
        ranked = within if race is None else [run for run in within if run["model"] in race["still"]]
        outside = [run for run in runs if run["model"] not in self.of_candidates.models]
        limits = self.constraints.results() if settings.limits else None
        confidence = CONFIDENCE if race is None else verdict_confidence()
        summary = summarise(ranked, self.evidence, metric, confidence)
        described = settings.describe()
        del described["weights"]
        skipped: list[SkippedImage] = [{"path": s.path, "reason": s.reason} for s in data.skipped]
        skipped += [s for i, s in enumerate(went_bad) if s not in went_bad[:i]]
        return {
            "schema": SCHEMA,
            "command": self.command,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "glocal": __version__,
            "settings": cast(
                CompareSettings,
                described
                | {
                    "cost": settings.cost,
                    "search": "exhaustive" if self.racing is None else "race",
                    "confidence": CONFIDENCE,
                    "jobs": self.measured.jobs,
                },
            ),
            "data": _described(data, metric, skipped),
            "runs": runs,
            "summary": summary if limits is None else self._with_outside(summary, [*ranked, *outside]),
            "verdict": judge(
                summary,
                within,
                len(data.val),
                len(self.every),
                metric,
                cost=settings.cost,
                guess=metric.guess(data),
                scratch=settings.mode == "scratch",
                race=race,
                choice=choice_of(ranked, self.evidence, metric),
                limits=limits,
                test=self.test,
            ),
            "environment": describe_environment(settings.device) | {"threads": self.measured.threads},
            **metric.about([*ranked, *outside], self.evidence, data),
            **self._extras(race),
        }

    def _with_outside(self, summary: Sequence[SummaryRow], runs: Sequence[RunEntry]) -> list[SummaryRow]:
        """The rows of the candidates, then those of trained models that do not meet the limits."""
        outside = rows_outside(runs, self.evidence, summary, self.settings.metric)
        marked = [*((row, True) for row in summary), *((row, False) for row in outside)]
        return [cast(SummaryRow, {**row, "within_limits": within}) for row, within in marked]

    def _extras(self, race: RaceResults | None) -> CompareExtras:
        """What was seen in the race, and the results of ``analyze``, if any."""
        extras: CompareExtras = {} if race is None else {"race": race}
        if self.settings.limits:
            extras["limits"] = self.constraints.results()
        if self.test is not None:
            extras["test"] = self.test
        if self.trials and isinstance(self.data, DataSource):
            images = len(held_out(self.data.train.fraction(self.settings.fractions[0], SPLIT_SEED))[1])
            extras["trials"] = trial_results(self.of_candidates, self.trials, images)
        if isinstance(self.data, DataSource):
            extras |= analysis.describe(self.analyzed(), self.data, self.store)
        return extras
