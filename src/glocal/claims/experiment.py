"""Run claims: train the models they need, each once, with the code of comparisons; measure; decide."""

import dataclasses
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from glocal.bench import describe_environment
from glocal.claims.catalogue import CLAIMS, words
from glocal.claims.claim import Claim
from glocal.claims.costs import Costs, measure_costs, seconds_needed
from glocal.claims.measures import CLAIM_METRICS
from glocal.claims.results import macs_of, tested, untested
from glocal.claims.trials import Trials
from glocal.claims.verdict import decide
from glocal.comparison import ComparisonObserver, ComparisonSettings, Run, make_settings
from glocal.comparison.execution import Runner, has_finished
from glocal.comparison.job import SILENT, execute_all
from glocal.comparison.run_tasks import SPLIT_SEED, RunTasks
from glocal.comparison.statistics import CONFIDENCE
from glocal.comparison.store import Store, open_store
from glocal.data import DataSource
from glocal.errors import GlocalError
from glocal.files import atomic_write_text
from glocal.formatting import duration
from glocal.models.micro import MICRO_MODELS
from glocal.report.claims import write_claims
from glocal.schema import ClaimsResults, ClaimsSettings, DecidedClaim
from glocal.training import Budget, TrainingProgress
from glocal.training.loader import num_batches
from glocal.version import __version__

SCHEMA = "glocal.claims/1"
FILE = "claims.json"
BUDGETS = {"quick": "1.5ep", "default": "20ep"}
"""Budget of a run on the whole training set; sized for fashion-mini and two cores, see docs/claims.md."""
GROWS = ("models", "seeds", "fractions", "weights")
"""Settings that may differ between calls for one folder: claims share runs."""


def run_claims(
    claims: Sequence[Claim],
    data: DataSource,
    out: Path,
    *,
    budget: str = "default",
    seeds: int = 3,
    image_size: int | None = None,
    device: str = "auto",
    side_by_side: bool = False,
    command: str = "glocal.claims.run_claims",
    observer: ComparisonObserver | None = None,
) -> ClaimsResults:
    """Train the models of the claims, measure them, and decide each claim.

    A model with the same keywords, images and seed is trained once for all claims of a folder, in this or earlier
    calls: the same call resumes, and another claim trains only what is missing.

    Args:
        claims: of `glocal.claims.choose`.
        data: from `glocal.data.load_data`.
        out: folder for runs and results.
        budget: ``quick``, ``default``, or the training budget of each run (`glocal.training.Budget`). Epochs are those
            of the whole training set: on a fraction of it a run takes as many steps.
        seeds: number of seeds; 3 means 0, 1 and 2.
        image_size: side in pixels; by default that of the micro models.
        device: see `glocal.comparison.make_settings`.
        side_by_side: see `glocal.comparison.compare`.
        command: recorded in the results.
        observer: receives progress; by default none.

    Returns:
        The contents of ``claims.json``, see docs/claims.md.

    Raises:
        GlocalError: for invalid arguments or data.
    """
    observer = observer or SILENT
    experiment = Experiment(claims, data, budget=budget, seeds=seeds, image_size=image_size, device=device)
    with open_store(out, experiment.plan, resume=True) as store:
        earlier = read_results(out) if (out / FILE).exists() else None
        side_by_side = side_by_side and experiment.settings.device == "cpu"
        costs = measure_costs(experiment.settings, experiment.tasks, store, side_by_side, observer)
        trials = experiment.train(store, costs, side_by_side, observer)
        results = experiment.results(trials, costs, earlier, command)
        atomic_write_text(out / FILE, json.dumps(results, indent=1, allow_nan=False))
        write_claims(results, out)
    return results


def read_results(out: Path) -> ClaimsResults:
    """The contents of ``claims.json`` in a folder.

    Raises:
        GlocalError: if it is missing or damaged.
    """
    path = out / FILE
    try:
        results: ClaimsResults = json.loads(path.read_text(encoding="utf-8"))
        if results["schema"] != SCHEMA or not all(claim["id"] for claim in results["claims"]):
            raise ValueError(f"schema {results['schema']!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GlocalError(
            f"out: expected results of glocal claims in {path}, got a damaged or different file ({error}); remove it "
            "(the runs are kept and measured again) or choose another --out"
        ) from error
    return results


class Experiment:
    """ComparisonSettings and runs for some claims.

    Args:
        claims: to test.
        data: the data set.
        budget, seeds, image_size, device: see `run_claims`.
    """

    def __init__(
        self,
        claims: Sequence[Claim],
        data: DataSource,
        *,
        budget: str = "default",
        seeds: int = 3,
        image_size: int | None = None,
        device: str = "auto",
    ) -> None:
        self.claims, self.data = tuple(claims), data
        self.words = words(claims)
        models = dict.fromkeys(model for models in self.words.values() for model in models)
        self.settings = make_settings(
            list(models) or MICRO_MODELS[:1],
            budget=BUDGETS.get(budget, budget),
            seeds=seeds,
            fractions=list(self.words) or [1.0],
            image_size=image_size,
            device=device,
        )
        if not models:
            self.settings = dataclasses.replace(self.settings, models=())
        self.tasks = RunTasks(self.settings, data)

    @property
    def plan(self) -> dict[str, Any]:
        """Settings that must be the same in every call for a folder."""
        settings = {key: value for key, value in self.settings.describe().items() if key not in GROWS}
        return {"schema": "glocal.claims-plan/1", "data": self.data.fingerprint, **settings}

    def of_fraction(self, fraction: float) -> ComparisonSettings:
        """Settings of runs on a fraction of the training set: as many steps and evaluations as on all of it."""
        budget, recipe = self.settings.budget, self.settings.recipe
        assert budget is not None  # claims train
        if budget.unit == "ep" and fraction < 1:
            size = recipe.data.batch_size
            every = num_batches(len(self.data.train), size)
            some = num_batches(len(self.data.train.fraction(fraction, SPLIT_SEED)), size)
            budget = Budget((budget.steps(len(self.data.train), every, 0) or 1) / some, "ep")
            recipe = recipe.replace(evaluate_every_epochs=recipe.checkpoint.evaluate_every_epochs * every / some)
        return dataclasses.replace(
            self.settings, models=self.words[fraction], fractions=(fraction,), budget=budget, recipe=recipe
        )

    def train(self, store: Store, costs: Costs, side_by_side: bool, observer: ComparisonObserver) -> Trials:
        """Execute all runs without a record or with a failed one."""
        groups = [self.of_fraction(fraction) for fraction in self.words]
        every = [run for settings in groups for run in settings.runs()]
        entries = {run: entry for run in every if (entry := store.record(run.id)) is not None}
        for run_id, reason in store.damaged.items():
            observer.say(f"The record of {run_id} is damaged ({reason}): the run is repeated.")
        missing = [run for run in every if not has_finished(entries.get(run))]
        if missing:
            needed = seconds_needed(missing, self.settings, self.data, costs)
            observer.say(
                f"Training {len(missing)} of {len(every)} runs, {costs.jobs} at a time. Estimated from a measured "
                f"training step, this takes about {duration(needed)} on this machine when idle."
            )

        def tell(run: Run, event: Any) -> None:
            if event is None:
                observer.start(run, len(every) - len(missing) + missing.index(run) + 1, len(every))
            elif isinstance(event, TrainingProgress):
                observer.update(run, event)
            else:
                entries[run] = event
                observer.finish(run, event)

        for settings in groups:
            runs = [run for run in settings.runs() if run in missing]
            if runs:
                runner = Runner(settings, RunTasks(settings, self.data), costs.macs)
                execute_all(runner, runs, store, costs.jobs, costs.threads, side_by_side, tell)
        return Trials(self.data, self.settings, store, entries)

    def results(self, trials: Trials, costs: Costs, earlier: ClaimsResults | None, command: str) -> ClaimsResults:
        """Measure each claim, and merge the results with those of earlier calls in the folder."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        claims = {claim["id"]: claim for claim in earlier["claims"]} if earlier else {}
        for claim in self.claims:
            claims[claim.id] = {**_test(claim, trials, costs), "created": now, "command": command}
        settings = self.settings.describe()
        seconds = {
            Run(*key, seed).id: trials.entry(*key, seed)["budget"]["seconds_to_budget"]
            for claim in self.claims
            for seed in trials.seeds(claim)
            for key in claim.trained()
        }
        return {
            "schema": SCHEMA,
            "created": now,
            "glocal": __version__,
            "command": command,
            "settings": cast(
                ClaimsSettings,
                {key: value for key, value in settings.items() if key not in GROWS}
                | {"confidence": CONFIDENCE, "jobs": costs.jobs, "seeds": list(self.settings.seeds)},
            ),
            "data": {
                "name": self.data.name,
                "classes": len(self.data.classes),
                "train": len(self.data.train),
                "val": len(self.data.val),
                "fingerprint": self.data.fingerprint,
            },
            "environment": describe_environment(self.settings.device) | {"threads": costs.threads},
            "seconds_of_runs": {**(earlier.get("seconds_of_runs", {}) if earlier else {}), **seconds},
            "claims": [claims[claim] for claim in sorted(claims, key=_order)],
        }


def _test(claim: Claim, trials: Trials, costs: Costs) -> DecidedClaim:
    """Measure a claim; a failure does not stop the others."""
    seeds, failures = trials.seeds(claim), trials.failures(claim)
    if not seeds:
        return untested(claim, failures[0])
    try:
        found = CLAIM_METRICS[claim.measure].read(claim, trials)
    except GlocalError as error:
        return untested(claim, str(error))
    macs = {arm.name: value for arm in claim.arms if (value := macs_of(arm, costs.costs)) is not None}
    entries = {key: [trials.entry(*key, seed) for seed in seeds] for key in claim.trained()}
    return tested(claim, found, decide(claim, found, macs), entries, costs.costs, seeds, failures)


def _order(claim_id: str) -> tuple[int, str]:
    """The order of the catalogue; removed claims last."""
    ids = [claim.id for claim in CLAIMS]
    return (ids.index(claim_id) if claim_id in ids else len(ids)), claim_id
