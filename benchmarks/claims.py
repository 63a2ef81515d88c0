"""The papers' claims on fashion-mini, by the command that anyone would call; its results are kept, and its time.

    python benchmarks/claims.py --budget quick
    python benchmarks/claims.py coupling,two-heads --budget default

Calls `glocal claims run` in runs/, where the same call goes on after a stop and another one adds claims, and then puts
claims.json into docs/results/claims-BUDGET, with a README.md of all verdicts; `glocal claims report` makes the pages.
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
"""The calls so far, each with its claims and seconds by the clock: one that was stopped counts as well."""
KEPT = ("claims.json", "costs.json", CALLS)
"""Beside README.md: costs.json has the training steps from which the command says how long it will take."""


def folder_of(budget: str) -> Path:
    """What is committed of a budget."""
    return ROOT / "docs" / "results" / f"claims-{budget}"


def page(folder: str, results: dict[str, Any], calls: list[dict[str, Any]]) -> str:
    """README.md of a folder of results.

    Args:
        folder: its name.
        results: what claims.json holds.
        calls: what `CALLS` holds.
    """
    settings, machine, claims, data = (results[key] for key in ("settings", "environment", "claims", "data"))
    counts = [f"{sum(c['verdict'] == v for c in claims)} {v}" for v in VERDICTS]
    runs, seconds = results["seconds_of_runs"], sum(call["seconds"] for call in calls)
    commands = ", ".join(f"`{command}`" for command in dict.fromkeys(claim["command"] for claim in claims))
    lines = [
        f"# The papers' claims on {data['name']}, {settings['budget']}",
        "",
        f"{commands}: {len(claims)} claim{'s' if len(claims) > 1 else ''}, {', '.join(counts)}. "
        f"{data['train']:,} training and {data['val']:,} test images, {len(settings['seeds'])} seeds, {len(runs)} runs "
        f"of {settings['budget'].removesuffix('ep')} epochs, {settings['jobs']} at a time on {machine['cores']} cores "
        f"({machine['cpu']}, torch {machine['torch']}); **{seconds / 60:.0f} minutes** in all, of which training took "
        f"{sum(runs.values()) / 60 / settings['jobs']:.0f}.",
        "",
        "What an experiment is and what its verdict means: [claims.md](../../claims.md). A verdict is of these images "
        "at this budget. [claims.json](claims.json) has every number; the pages that the command wrote, `index.html` "
        f"and one for each claim, are written from it again by `glocal claims report docs/results/{folder}`.",
        "",
        "| claim | verdict | runs | minutes of a core |",
        "| --- | --- | --- | --- |",
    ]
    for claim in claims:
        count, minutes = claim["cost"]["runs"], claim["cost"]["seconds"] / 60
        cost = f"{count} | {minutes:.0f}" if count else "- | -"
        verdict = claim["verdict"] or "not tested"
        lines.append(f"| `{claim['id']}`: {claim['sentence']} | **{verdict}** | {cost} |")
    lines += [
        "",
        "Runs that claims share were trained once, and count in each.",
        "",
        "## What was found",
        "",
        "The difference of two arms, with an interval; all intervals of a claim hold together with 95 % confidence.",
        "",
        "| claim | expected | found | |",
        "| --- | --- | --- | --- |",
    ]
    for claim in claims:
        for row in claim["comparisons"]:
            found = f"{row['question']} | {row['finding']} | {row['verdict']}"
            lines.append(f"| `{claim['id']}` | {found} |")
    return "\n".join(lines) + "\n"


def publish(run: Path, out: Path) -> None:
    """Put what a call left in ``run`` into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copyfile(run / name, out / name)
    results, calls = (json.loads((out / name).read_text(encoding="utf-8")) for name in ("claims.json", CALLS))
    atomic_write_text(out / "README.md", page(out.name, results, calls))


def main() -> None:
    """Call the command, note its time, and publish."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", choices=tuple(BUDGETS), default="quick")
    parser.add_argument("claims", nargs="?", default="all", help="ids with commas between")
    asked = parser.parse_args()
    budget = asked.budget
    run = ROOT / "runs" / f"claims-fashion-mini-{budget}"  # where the command puts it by itself
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
