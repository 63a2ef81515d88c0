"""The papers' claims on fashion-mini by `glocal claims run`; keeps its results and time.

    python benchmarks/claims.py --budget quick
    python benchmarks/claims.py coupling,two-heads --budget default

Calls `glocal claims run` in runs/, where the same call resumes and another one adds claims. Then copies claims.json to
docs/results/claims-BUDGET and writes a README.md with all verdicts; `glocal claims report` makes the pages.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from glocal.claims import BUDGETS
from glocal.files import atomic_write_text
from glocal.report.claims import VERDICTS

ROOT = Path(__file__).parents[1]
CALLS = "calls.json"
"""The calls so far, each with its claims and wall-clock seconds; interrupted calls count too."""
KEPT = ("claims.json", "costs.json", CALLS)
"""Beside README.md. costs.json has the measured training steps, from which the command estimates its time."""


def folder_of(budget: str) -> Path:
    """The folder of committed results of a budget."""
    return ROOT / "docs" / "results" / f"claims-{budget}"


def page(folder: str, results: dict[str, Any], calls: list[dict[str, Any]]) -> str:
    """README.md of a folder of results.

    Args:
        folder: its name.
        results: contents of claims.json.
        calls: contents of `CALLS`.
    """
    settings, machine, claims, data = (results[key] for key in ("settings", "environment", "claims", "data"))
    counts = [f"{sum(c['verdict'] == v for c in claims)} {v}" for v in VERDICTS]
    runs, seconds = results["seconds_of_runs"], sum(call["seconds"] for call in calls)
    commands = ", ".join(f"`{command}`" for command in dict.fromkeys(claim["command"] for claim in claims))
    lines = [
        f"# The papers' claims on {data['name']}, {settings['budget']}",
        "",
        f"{commands}: {len(claims)} claim{'s' if len(claims) > 1 else ''}, {', '.join(counts)}. "
        f"{data['train']:,} training and {data['val']:,} validation images, {len(settings['seeds'])} seeds, "
        f"{len(runs)} runs of {settings['budget'].removesuffix('ep')} epochs, {settings['jobs']} at a time on "
        f"{machine['cores']} cores ({machine['cpu']}, torch {machine['torch']}); "
        f"**{seconds / 60:.0f} minutes** in total, {sum(runs.values()) / 60 / settings['jobs']:.0f} of them training.",
        "",
        "Experiments and verdicts are explained in [claims.md](../../claims.md). A verdict holds for these images at "
        "this budget. [claims.json](claims.json) has all numbers; "
        f"`glocal claims report docs/results/{folder}` rebuilds `index.html` and a page per claim from it.",
        "",
        "| claim | verdict | runs | core minutes |",
        "| --- | --- | --- | --- |",
    ]
    for claim in claims:
        count, minutes = claim["cost"]["runs"], claim["cost"]["seconds"] / 60
        cost = f"{count} | {minutes:.0f}" if count else "- | -"
        verdict = claim["verdict"] or "not tested"
        lines.append(f"| `{claim['id']}`: {claim['sentence']} | **{verdict}** | {cost} |")
    lines += [
        "",
        "Runs shared by several claims were trained once; they count in each.",
        "",
        "## Findings",
        "",
        "Differences of two arms with their intervals; all intervals of a claim hold jointly with 95 % confidence.",
        "",
        "| claim | expected | finding | verdict |",
        "| --- | --- | --- | --- |",
    ]
    for claim in claims:
        for row in claim["comparisons"]:
            found = f"{row['question']} | {row['finding']} | {row['verdict']}"
            lines.append(f"| `{claim['id']}` | {found} |")
    return "\n".join(lines) + "\n"


def publish(run: Path, out: Path) -> None:
    """Copy the results of a call from ``run`` to ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copyfile(run / name, out / name)
    results, calls = (json.loads((out / name).read_text(encoding="utf-8")) for name in ("claims.json", CALLS))
    atomic_write_text(out / "README.md", page(out.name, results, calls))


def main() -> None:
    """Call the command, record its time, and publish."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", choices=tuple(BUDGETS), default="quick")
    parser.add_argument("claims", nargs="?", default="all", help="comma-separated ids")
    asked = parser.parse_args()
    budget = asked.budget
    run = ROOT / "runs" / f"claims-fashion-mini-{budget}"  # the command's default --out
    start = time.perf_counter()
    try:
        command = ["claims", "run", asked.claims, "fashion-mini", "--budget", budget]
        subprocess.run([sys.executable, "-m", "glocal", *command], cwd=ROOT, check=True)
    finally:
        if run.is_dir():
            calls = json.loads((run / CALLS).read_text()) if (run / CALLS).exists() else []
            calls.append({"claims": asked.claims, "seconds": round(time.perf_counter() - start, 1)})
            atomic_write_text(run / CALLS, json.dumps(calls) + "\n")
    publish(run, folder_of(budget))


if __name__ == "__main__":
    main()
