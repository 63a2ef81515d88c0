"""Simulated comparisons of many models: how often a best model is called worse, and how good the winner looks.

    python benchmarks/many_models.py                    into docs/results/many-models.json and many-models.md
    python benchmarks/many_models.py --repetitions 50   a quick look

Models answer images of shared difficulty; seeds of a model differ by chance on each image and in their true accuracy.
Beside the simultaneous intervals of glocal stands an interval for each pair alone, and the winner's own accuracy.
"""

import argparse
import json
import time
from dataclasses import dataclass
from datetime import date
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from glocal.bench import describe_environment
from glocal.comparison import paired_difference, statistics
from glocal.comparison.simultaneous import accuracy_of_choice, deviations, differences_to_best
from glocal.comparison.statistics import Answers
from glocal.files import atomic_write_text

RESULT = Path(__file__).parents[1] / "docs" / "results" / "many-models"
ACCURACY, SHARED, OF_SEED = 0.8, 0.7, 0.5
"""Accuracy of equal models; fraction of the variance of an image's latent difficulty that all models share; fraction of
the rest that is a seed's own."""
ALONE = 200
"""Repetitions for pairs alone, which take the longest."""
statistics.RESAMPLES = 1_000  # instead of 10,000


@dataclass(frozen=True)
class Case:
    """``models`` of one accuracy, the first ``ahead`` of the others; seeds spread by ``spread``."""

    models: int
    images: int
    seeds: int
    ahead: float = 0.0
    spread: float = 0.01

    def draw(self, rng: np.random.Generator) -> list[Answers]:
        """One comparison."""
        true = np.full((self.models, self.seeds, 1), ACCURACY)
        true[0] += self.ahead
        if self.seeds > 1:  # with one seed it is these trained models that are compared
            true = true + self.spread * rng.standard_normal((self.models, self.seeds, 1))
        latent = np.sqrt(SHARED) * rng.standard_normal(self.images)
        latent = latent + np.sqrt((1 - SHARED) * (1 - OF_SEED)) * rng.standard_normal((self.models, 1, self.images))
        latent = latent + np.sqrt((1 - SHARED) * OF_SEED) * rng.standard_normal((self.models, self.seeds, self.images))
        return [Answers(model) for model in latent < stats.norm.ppf(true.clip(1e-3, 1 - 1e-3))]


CASES = (
    Case(5, 1000, 1), Case(5, 1000, 3), Case(20, 1000, 1), Case(20, 1000, 3), Case(100, 500, 1), Case(100, 500, 3),
    Case(5, 200, 3), Case(5, 1000, 1, 0.02), Case(20, 1000, 3, 0.02),
)  # fmt: skip


def repetition(task: tuple[Case, int]) -> dict[str, Any]:
    """One simulated comparison, seen by both kinds of intervals."""
    case, seed = task
    models = case.draw(np.random.default_rng((case.models, case.images, case.seeds, round(1000 * case.ahead), seed)))
    true = np.full(case.models, ACCURACY)
    true[0] += case.ahead
    of_all = deviations(models)
    intervals = differences_to_best(of_all)
    best = int(np.argmax(of_all.means))
    choice = accuracy_of_choice(models, of_all)
    out = [model for model, interval in enumerate(intervals) if not interval.holds_zero]
    few = range(case.models) if case.models <= 20 and seed < ALONE else ()
    alone = [m for m in few if m != best and not paired_difference(models[m].right, models[best].right).holds_zero]
    true_best = set(np.flatnonzero(true == true.max()))
    return {
        "wrong": bool(true_best & set(out)),
        "wrong_alone": bool(true_best & set(alone)) if few else None,
        "covered": all(i.low <= true[m] - true[best] <= i.high for m, i in enumerate(intervals)),
        "choice": choice.mean - true[best],
        "own": float(of_all.means[best]) - true[best],
        "choice_covered": choice.low <= true[best] <= choice.high,
    }


def measure(case: Case, repetitions: int, pool: Any) -> dict[str, Any]:
    """A row."""
    found = pool.map(repetition, [(case, seed) for seed in range(repetitions)], chunksize=10)
    alone = [row["wrong_alone"] for row in found if row["wrong_alone"] is not None]
    choices = [row["choice"] for row in found]
    return {
        **case.__dict__,
        "wrong": float(np.mean([row["wrong"] for row in found])),
        "wrong_alone": float(np.mean(alone)) if alone else None,
        "covered": float(np.mean([row["covered"] for row in found])),
        "bias": 100 * float(np.mean(choices)),
        "bias_error": 100 * float(np.std(choices) / np.sqrt(repetitions)),
        "own_bias": 100 * float(np.mean([row["own"] for row in found])),
        "choice_covered": float(np.mean([row["choice_covered"] for row in found])),
    }


def page(result: dict[str, Any]) -> str:
    """Markdown."""
    machine = result["environment"]
    lines = [
        "# Many models at once",
        "",
        f"{result['repetitions']:,} simulated comparisons a row, by `{result['command']}`, {result['seconds']:,} s, "
        f"{result['date']}, {machine['cpu']}, {machine['cores']} cores; 1,000 resamples each, pairs alone on the first "
        f"{ALONE}. Models of 80 % accuracy; *ahead*: by how many points the first is better. Asked: a best model is "
        "called worse in at most 5 %; intervals hold in 93 to 97 %; the accuracy of the choice is biased by at most 0.1"
        " point where models are equal.",
        "",
        "| models | images | seeds | ahead | a best one called worse | by pairs alone | all differences covered | "
        "bias of the choice, points | of the winner's own accuracy | its interval covers |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        alone = "-" if row["wrong_alone"] is None else f"{100 * row['wrong_alone']:.1f} %"
        cells = (
            row["models"], f"{row['images']:,}", row["seeds"], f"{100 * row['ahead']:g}", f"{100 * row['wrong']:.1f} %",
            alone, f"{100 * row['covered']:.1f} %", f"{row['bias']:+.2f} ± {1.96 * row['bias_error']:.2f}",
            f"{row['own_bias']:+.2f}", f"{100 * row['choice_covered']:.1f} %",
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    start, rows = time.perf_counter(), []
    with Pool(arguments.processes) as pool:
        for case in CASES:
            rows.append(measure(case, arguments.repetitions, pool))
            print(json.dumps(rows[-1]), flush=True)
    result = {
        "repetitions": arguments.repetitions,
        "command": "python benchmarks/many_models.py",
        "seconds": round(time.perf_counter() - start),
        "date": date.today().isoformat(),
        "rows": rows,
        "environment": describe_environment(),
    }
    atomic_write_text(RESULT.with_suffix(".json"), json.dumps(result, indent=1))
    atomic_write_text(RESULT.with_suffix(".md"), page(result))


if __name__ == "__main__":
    main()
