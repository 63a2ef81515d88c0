"""One self-contained HTML page, and a CSV, of the contents of results.json."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from glocal.files import atomic_write_text, escape_formula, printable
from glocal.formatting import duration
from glocal.report import figures
from glocal.report.insides import insides
from glocal.report.thumbnails import thumbnail
from glocal.report.words import WORDS, Words
from glocal.schema import CompareResults

EXAMPLE = 256  # pixels of a picture with labels
SHOWN_SKIPPED = 500
BUDGETS = (("ep", "epochs"), ("s", "seconds"), ("flop", "FLOP"))
Results = Mapping[str, Any]


def write_report(results: CompareResults, out: Path, *, pictures: Mapping[str, Image.Image] | None = None) -> Path:
    """Write OUT/report.html atomically.

    Args:
        results: contents of results.json (docs/results-schema.md).
        out: an existing folder.
        pictures: of the results, by key; re-encoded here, never passed through. The page notes if they are missing.
    """
    path = out / "report.html"
    atomic_write_text(path, render_report(results, pictures=pictures))
    return path


def render_report(results: CompareResults, *, pictures: Mapping[str, Image.Image] | None = None) -> str:
    """The page as text: no script, no request, everything from data escaped."""
    known = {printable(key): image for key, image in (pictures or {}).items()}
    context = _context(shown(results), known)
    context["without_pictures"] = pictures is None and names_pictures(results)
    return environment().get_template("compare.html.j2").render(context)


def names_pictures(results: CompareResults) -> bool:
    """Whether the page of the results shows pictures of images, which the results themselves do not hold."""
    mistakes = any(run.get("mistakes") for run in results["runs"])
    analysis = results.get("analysis")
    return bool(mistakes or results.get("examples") or (analysis and analysis.get("disturbed")))


def environment() -> Environment:
    """The templates of this package, with autoescape and number formats."""
    made = Environment(
        loader=PackageLoader("glocal.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        percent=_percent, signed=_signed, si=_si, number=_number, pretty=_pretty, budget=_budget, duration=_duration
    )
    return made


def write_csv(results: CompareResults, path: Path) -> None:
    """Write one row per run. Text that a spreadsheet would read as a formula is prefixed with an apostrophe."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    words = WORDS[results.get("metric", "top1")]
    columns = (
        "id", "model", "seed", "fraction", "status", "error", words.key, *words.scores, "params", "macs",
        "train_images_per_s", "latency_ms_b1", f"images_per_s_b{words.batch}", "peak_memory_mib", "budget",
    )  # fmt: skip
    writer.writerow(columns)
    for run in results["runs"]:
        budget = run.get("budget")
        row = {**run, "budget": budget["asked"] if budget else None}
        cells = [row.get(column) for column in columns]
        writer.writerow([escape_formula(cell) if isinstance(cell, str) else cell for cell in cells])
    atomic_write_text(path, buffer.getvalue())


def _context(results: Results, pictures: Mapping[str, Image.Image]) -> dict[str, Any]:
    """Context of the template: the largest fraction in full, the others in one figure and one table."""
    words = WORDS[results.get("metric", "top1")]
    summary, classes = _scored(results["summary"], words), results["data"]["classes"]
    looks = figures.Looks(results["settings"]["models"])
    largest = max((row["fraction"] for row in summary), default=1.0)
    rows = [row for row in summary if row["fraction"] == largest]
    runs = [run for run in results["runs"] if run["status"] == "ok" and run["fraction"] == largest]
    by_model = {row["model"]: [run for run in runs if run["model"] == row["model"]] for row in rows}
    by_distance = [row for row in results.get("by_distance", ()) if row["fraction"] == largest]
    return {
        "results": results,
        "words": words,
        "summary": summary,
        "others": _others(rows, words),
        "colours": figures.COLOURS,
        "rows": rows,
        "largest": largest,
        "row_of": {row["model"]: row for row in rows},
        "swatch": {model: looks.swatch(model) for model in results["settings"]["models"]},
        "several_fractions": len({row["fraction"] for row in summary}) > 1,
        "figures": _figures(rows, runs, summary, looks, words) if rows else {},
        "race": _race(results["race"], looks, words) if results.get("race", {}).get("curves") else None,
        "distances": _distances(rows, _scored(by_distance, words), looks, len(classes)) if by_distance else None,
        "confusions": [
            _confusion(by_model[row["model"]], classes, f"confusion-{i}", row["model"])
            for i, row in enumerate(rows)
            if by_model[row["model"]][0].get("confusion")  # none for very many classes
        ],
        "per_class": _per_class(by_model, classes),
        "mistakes": [
            (row["model"], *_mistakes(by_model[row["model"]][0], classes, pictures))
            for row in rows
            if "mistakes" in by_model[row["model"]][0]
        ],
        "examples": _examples(results, pictures),
        "insides": insides(results, rows, looks, pictures) if rows else None,
        "thresholds": {model: runs[0]["threshold"] for model, runs in by_model.items() if "threshold" in runs[0]},
        "cost_of": partial(_cost, results["settings"].get("cost", "macs"), words),
        "curves": any(len(run["curve"]) > 1 for run in results["runs"]),
        "failed": [run for run in results["runs"] if run["status"] != "ok"],
        "finished": sum(run["status"] == "ok" for run in results["runs"]),
        "shown_skipped": results["data"]["skipped"][:SHOWN_SKIPPED],
    }


def _cost(cost: str, words: Words, row: Results) -> tuple[str, str]:
    """The cost that decides between ties, and its unit."""
    if cost == "latency":
        return f"{row['latency_ms_b1']:.2f}", "ms at batch 1"
    if cost == "throughput":
        return f"{row[f'images_per_s_b{words.batch}']:,.0f}", f"images/s at batch {words.batch}"
    if cost == "memory":
        return f"{row['peak_memory_mib']:,.0f}", "MiB in training"
    return _si(row["macs"]), "MACs"


def _scored(rows: Sequence[Results], words: Words) -> list[dict[str, Any]]:
    """Rows with their score and its interval under common names."""
    return [{**row, "score": row[f"{words.key}_mean"], "interval": row[f"{words.key}_ci"]} for row in rows]


def _others(rows: Sequence[Results], words: Words) -> dict[str, str]:
    """Key and head of each further column; without empty ones, except top-5."""
    named = {f"{key}_mean": head for key, head in words.others.items()}
    return {key: head for key, head in named.items() if key == "top5_mean" or any(row[key] is not None for row in rows)}


def _figures(
    rows: Sequence[Results], runs: Sequence[Results], summary: Sequence[Results], looks: figures.Looks, words: Words
) -> dict[str, Markup]:
    macs = max(row["macs"] for row in rows)
    factor, unit = (1e9, "billions") if macs >= 1e9 else (1e6, "millions")
    return {
        "leaderboard": figures.leaderboard(rows, looks, words),
        "leaderboard_narrow": figures.leaderboard(rows, looks, words, narrow=True),
        "macs": figures.trade_off(rows, looks, words, "macs", f"MACs per image, {unit}", factor),
        "latency": figures.trade_off(rows, looks, words, "latency_ms_b1", "latency at batch 1, ms"),
        "epochs": figures.curves(runs, looks, words, "epoch", "epochs"),
        "seconds": figures.curves(runs, looks, words, "seconds", "seconds of training"),
        "fractions": figures.fractions(summary, looks, words),
    }


def _race(race: Results, looks: figures.Looks, words: Words) -> dict[str, Any]:
    """Who was in the race, how far, and why some left: a figure, and a row per model as it last stood."""
    last = {one["model"]: {**one, "done": look["done"]} for look in race["looks"] for one in look["standings"]}
    ways = {"behind": 1, "dearer": 2}
    rows = [{**one, "left": None if one["model"] in race["still"] else one["left"]} for one in last.values()]
    rows.sort(key=lambda one: (-one["done"], ways.get(one["left"], 0), -one["score"]))
    return {**race, "figure": figures.race(race, looks, words), "rows": rows}


def _distances(
    rows: Sequence[Results], by_distance: Sequence[Results], looks: figures.Looks, num_classes: int
) -> dict[str, Any]:
    """Accuracy against the distance needed, as a figure and as a table with a column for each distance."""
    bins = sorted({(row["distance"][0], row["distance"][1]) for row in by_distance})
    found = {(row["model"], row["distance"][0]): row for row in by_distance}
    return {
        "figure": figures.distances(by_distance, looks, 1 / num_classes),
        "heads": [f"{low:g}" if low == high else f"{low:g}–{high:g}" for low, high in bins],
        "images": [found[rows[0]["model"], low]["images"] for low, _ in bins],
        "rows": [(row["model"], [found[row["model"], low] for low, _ in bins]) for row in rows],
    }


def _confusion(runs: Sequence[Results], classes: Sequence[str], name: str, model: str) -> dict[str, Any]:
    """The confusion matrix of a model over all its seeds, as a figure and by its largest entries."""
    matrix = _sum([run["confusion"] for run in runs])
    return {
        "model": model,
        "figure": figures.confusion(matrix, classes, name, model),
        "pairs": _most_confused(matrix, classes),
    }


def _sum(matrices: Sequence[Sequence[Sequence[int]]]) -> list[list[int]]:
    return [[sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]


def _most_confused(matrix: Sequence[Sequence[int]], classes: Sequence[str], count: int = 8) -> list[dict[str, Any]]:
    """The most frequent wrong predictions, as fractions of their true class."""
    pairs: list[dict[str, Any]] = [
        {"true": classes[i], "predicted": classes[j], "share": n / sum(row)}
        for i, row in enumerate(matrix)
        for j, n in enumerate(row)
        if i != j and n
    ]
    return sorted(pairs, key=lambda pair: -pair["share"])[:count]


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
    run: Results, classes: Sequence[str], pictures: Mapping[str, Image.Image]
) -> tuple[int, list[dict[str, Any]]]:
    """The seed of a run and its most confident mistakes, with their pictures."""
    listed = []
    for mistake in run["mistakes"]:
        image = pictures.get(mistake["picture"])
        uri, sharp = thumbnail(image) if image is not None else (None, False)
        true, predicted = classes[mistake["true"]], classes[mistake["predicted"]]
        listed.append({**mistake, "true": true, "predicted": predicted, "uri": uri, "sharp": sharp})
    return run["seed"], listed


def _examples(results: Results, pictures: Mapping[str, Image.Image]) -> list[dict[str, Any]]:
    """Validation images with ground truth and the predictions of each model, if the images are available."""
    listed = []
    for example in results.get("examples", ()):
        if example["truth"] in pictures:
            found = [
                {"model": model, "score": example["scores"][model], "uri": thumbnail(pictures[key], EXAMPLE)[0]}
                for model, key in example["predictions"].items()
            ]
            listed.append({**example, "uri": thumbnail(pictures[example["truth"]], EXAMPLE)[0], "found": found})
    return listed


def shown(value: Any) -> Any:
    """The results with every text made safe to show: control, bidirectional and undecodable characters escaped."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable(str(key)): shown(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [shown(item) for item in value]
    return value


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"


def _signed(value: float, digits: int = 1) -> str:
    """Points of percent with a sign, zero without."""
    text = f"{100 * value:+.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "\u2212")


def _si(value: float | None) -> str:
    """A count with three digits and a unit: 17.1M."""
    if value is None:
        return "–"
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.3g}"


def _number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _duration(seconds: float | None) -> str:
    return "–" if seconds is None else duration(seconds)


def _pretty(value: object) -> str:
    """A setting as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)


def _budget(asked: str) -> str:
    """A budget in words: 5ep is 5 epochs."""
    for suffix, word in BUDGETS:
        number = asked.removesuffix(suffix)
        if number != asked and number.replace(".", "", 1).replace("e", "", 1).isdigit():
            return f"{number} {word.removesuffix('s') if number == '1' else word}"
    return asked
