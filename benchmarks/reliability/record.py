"""Record the results of the scripts of this folder: docs/results/reliability.json, and reliability.md from it."""

import json
import shlex
import sys
from datetime import date
from pathlib import Path
from typing import Any

from glocal.bench import describe_environment
from glocal.files import atomic_write_text

RESULTS = Path(__file__).parents[2] / "docs/results"
HEAD = """# Reliability

Each row is the result of the last run of a script of `benchmarks/reliability/`; the scripts replace their rows.
Failures are listed too: *reached* says whether the target was reached. Short versions of the same checks are tests and
run with every change.

"""


def record(
    name: str, *, what: str, asked: str, found: str, holds: bool, seed: int | None, seconds: float, **more: Any
) -> None:
    """Replace a row.

    Args:
        name: of the row, such as ``kill``.
        what: the check in a sentence.
        asked: the target.
        found: the result.
        holds: whether the target was reached.
        seed: of the random choices.
        seconds: run time of the script.
        more: details for the JSON, and ``note``, a sentence for the page.
    """
    path = RESULTS / "reliability.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    machine = describe_environment()
    command = shlex.join(
        ["python", *(str(Path(a).relative_to(Path.cwd())) if Path(a).is_absolute() else a for a in sys.argv)]
    )
    rows[name] = {
        "what": what, "asked": asked, "found": found, "holds": holds, "seed": seed, "seconds": round(seconds, 1),
        "command": command, "date": date.today().isoformat(), "environment": machine, **more,
    }  # fmt: skip
    atomic_write_text(path, json.dumps(dict(sorted(rows.items())), indent=1) + "\n")
    atomic_write_text(RESULTS / "reliability.md", page(rows))
    print(f"{'holds' if holds else 'DOES NOT HOLD'}: {what}: {found} (asked: {asked})")


def page(rows: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = [HEAD + "| check | target | result | reached | seed |", "| --- | --- | --- | --- | --- |"]
    for row in rows.values():
        seed = "-" if row["seed"] is None else row["seed"]
        lines.append(
            f"| {row['what']} | {row['asked']} | {row['found']} | {'yes' if row['holds'] else '**no**'} | {seed} |"
        )
    lines += ["", "Commands:", "", "| command | seconds | date | machine |", "| --- | --- | --- | --- |"]
    for row in rows.values():
        machine = row["environment"]
        versions = ", ".join(f"{key} {machine[key]}" for key in ("python", "torch") if key in machine)
        lines.append(
            f"| `{row['command']}` | {row['seconds']:,.0f} s | {row['date']} | {machine.get('cpu', '')}, "
            f"{machine.get('cores', '?')} cores, {versions} |"
        )
    notes = [f"* {row['what']}: {row['note']}" for row in rows.values() if row.get("note")]
    return "\n".join([*lines, *(["", "Notes:", "", *notes] if notes else []), ""])
