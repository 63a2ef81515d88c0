"""One self-contained HTML page, and a CSV, from what results.json holds."""

import base64
import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from glocal.files import atomic_write_text, printable
from glocal.report import figures

THUMBNAIL = 144  # pixels of a mistake's longer side
SHOWN_MISTAKES = 8
CSV_COLUMNS = (
    "id", "model", "seed", "fraction", "status", "error", "top1", "top5", "ece", "nll", "params", "macs",
    "train_images_per_s", "latency_ms_b1", "images_per_s_b32", "peak_memory_mib", "budget",
)  # fmt: skip
Results = Mapping[str, Any]


def write_report(results: Results, out: Path, *, pictures: Mapping[str, Image.Image] | None = None) -> Path:
    """Write OUT/report.html, whole or not at all.

    Args:
        results: what results.json holds (docs/results-schema.md).
        out: an existing folder.
        pictures: images of the mistakes, by their key in the results; re-encoded here, never passed through.
    """
    path = out / "report.html"
    atomic_write_text(path, render_report(results, pictures=pictures))
    return path


def render_report(results: Results, *, pictures: Mapping[str, Image.Image] | None = None) -> str:
    """The page as text: no script, no request, everything from data escaped."""
    environment = Environment(
        loader=PackageLoader("glocal.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=lambda value, digits=1: "–" if value is None else f"{100 * value:.{digits}f}",
        si=_si,
        number=_number,
        pretty=lambda value: json.dumps(value) if isinstance(value, list | dict) else str(value),
    )
    return environment.get_template("compare.html.j2").render(_context(_shown(results), pictures or {}))


def write_csv(results: Results, path: Path) -> None:
    """Write a row a run. A text that a spreadsheet would take for a formula begins with an apostrophe."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for run in results["runs"]:
        row = {**run, "budget": (run.get("budget") or {}).get("asked")}
        writer.writerow([_cell(row.get(column)) for column in CSV_COLUMNS])
    atomic_write_text(path, buffer.getvalue())


def _cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _context(results: Results, pictures: Mapping[str, Image.Image]) -> dict[str, Any]:
    models = results["settings"]["models"]
    looks = figures.Looks(models)
    done = [run for run in results["runs"] if run["status"] == "ok"]
    largest = max((row["fraction"] for row in results["summary"]), default=1.0)
    rows = [row for row in results["summary"] if row["fraction"] == largest]
    runs = [run for run in done if run["fraction"] == largest]
    by_model = {row["model"]: [run for run in runs if run["model"] == row["model"]] for row in rows}
    classes = results["data"]["classes"]
    confusions = {name: _sum([run["confusion"] for run in group]) for name, group in by_model.items()}
    return {
        "results": results,
        "rows": rows,
        "largest": largest,
        "row_of": {row["model"]: row for row in rows},
        "several_fractions": len({row["fraction"] for row in results["summary"]}) > 1,
        "leaderboard": figures.leaderboard(rows, looks) if rows else None,
        "trade_macs": figures.trade_off(rows, looks, "macs", "multiply-accumulates of an image, M", 1e6)
        if rows
        else None,
        "trade_latency": figures.trade_off(rows, looks, "latency_ms_b1", "latency at batch 1, ms", 1) if rows else None,
        "curves_epoch": figures.curves(runs, looks, "epoch", "epochs") if runs else None,
        "curves_seconds": figures.curves(runs, looks, "seconds", "seconds of training") if runs else None,
        "fractions": figures.fractions(results["summary"], looks) if rows else None,
        "confusions": {
            name: figures.confusion(matrix, classes, f"confusion-{i}", name)
            for i, (name, matrix) in enumerate(confusions.items())
        },
        "confused": {name: _most_confused(matrix, classes) for name, matrix in confusions.items()},
        "per_class": _per_class(by_model, classes),
        "mistakes": _mistakes(by_model, classes, pictures),
        "failed": [run for run in results["runs"] if run["status"] != "ok"],
    }


def _sum(matrices: Sequence[Sequence[Sequence[int]]]) -> list[list[int]]:
    return [[sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]


def _most_confused(
    matrix: list[list[int]], classes: Sequence[str], count: int = 5
) -> list[tuple[str, str, int, float]]:
    pairs = [
        (classes[i], classes[j], n, n / max(sum(row), 1))
        for i, row in enumerate(matrix)
        for j, n in enumerate(row)
        if i != j and n
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:count]


def _per_class(by_model: Mapping[str, Sequence[Results]], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Mean accuracy over seeds for each class and model, hardest class of the best model first."""
    table = []
    for label, name in enumerate(classes):
        scores = {}
        for model, runs in by_model.items():
            values = [run["per_class"][label] for run in runs if run["per_class"][label] is not None]
            scores[model] = sum(values) / len(values) if values else None
        table.append({"name": name, "scores": scores})
    best = next(iter(by_model), None)
    return sorted(
        table, key=lambda row: math.inf if best is None or row["scores"][best] is None else row["scores"][best]
    )


def _mistakes(
    by_model: Mapping[str, Sequence[Results]], classes: Sequence[str], pictures: Mapping[str, Image.Image]
) -> dict[str, list[dict[str, Any]]]:
    """The most confident mistakes of the first seed of each model, with their pictures."""
    shown = {}
    for model, runs in by_model.items():
        for run in runs[:1]:
            shown[model] = [
                {
                    "path": mistake["path"],
                    "true": classes[mistake["true"]],
                    "predicted": classes[mistake["predicted"]],
                    "confidence": mistake["confidence"],
                    "picture": _data_uri(pictures[mistake["picture"]]) if mistake["picture"] in pictures else None,
                }
                for mistake in run["mistakes"][:SHOWN_MISTAKES]
            ]
    return shown


def _data_uri(image: Image.Image) -> str:
    image = image.convert("RGB")
    scale = THUMBNAIL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    method = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    buffer = io.BytesIO()
    image.resize(size, method).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _shown(value: Any) -> Any:
    """The results with every text made safe to show: control, bidirectional and undecodable characters escaped."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable(str(key)): _shown(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(item) for item in value]
    return value


def _si(value: float | None) -> str:
    """A count with three digits and a unit: 17.1M."""
    if value is None:
        return "–"
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.3g}"


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"
