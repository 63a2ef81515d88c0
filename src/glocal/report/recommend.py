"""The page of `glocal recommend`: what images need, and what to compare first."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from markupsafe import Markup

from glocal.files import atomic_write_text
from glocal.report.figures import COLOURS, INK, STYLE, Looks, new_figure, svg
from glocal.report.page import environment, shown

Json = Mapping[str, Any]
_KINDS = {
    "shuffle": ("Without layout", "patches along a side, shuffled", COLOURS[1][0], "o"),
    "blur": ("Without detail", "width of the blur, as a share of the side", COLOURS[0][0], "s"),
}


def write_recommendation(results: Json, out: Path) -> Path:
    """Write OUT/report.html, whole or not at all; gives its path.

    Args:
        results: what results.json holds (docs/recommend.md).
        out: an existing folder.
    """
    path = out / "report.html"
    atomic_write_text(path, render_recommendation(results))
    return path


def render_recommendation(results: Json) -> str:
    """The page as text: no script, no request, everything from data escaped."""
    results = shown(results)
    models = [one["model"] for one in results["recommended"]]
    looks = Looks(models)
    return (
        environment()
        .get_template("recommend.html.j2")
        .render(
            results=results,
            colours=COLOURS,
            swatch={model: looks.swatch(model) for model in models},
            panels=[{"title": _KINDS[kind][0], "figure": curve(results["need"], kind)} for kind in _KINDS],
        )
    )


def curve(need: Json, kind: str) -> Markup:
    """Accuracy of the reference under one kind of disturbance, from none to strong, with 95 % intervals."""
    title, label, colour, marker = _KINDS[kind]
    rows = [row for row in need["conditions"] if row["kind"] in ("clean", kind)]
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(5.2, 3.4)
        xs, ys = range(len(rows)), [100 * row["accuracy"]["mean"] for row in rows]
        low, high = ([100 * row["accuracy"][end] for row in rows] for end in ("low", "high"))
        axes.fill_between(xs, low, high, color=colour, alpha=0.16, linewidth=0)
        axes.plot(xs, ys, color=colour, marker=marker, markersize=6, linewidth=1.8)
        axes.axhline(100 * need["chance"], color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate("guessing", (0.01, 100 * need["chance"]), xycoords=("axes fraction", "data"), va="bottom", size=9)
        axes.set_xticks(xs, [_level(row) for row in rows])
        axes.set_ylim(0, 101)
        axes.set(xlabel=label, ylabel="top-1 of the reference, %")
        return svg(figure, f"need-{kind}", f"{title}: {_in_words(rows)}")


def _level(row: Json) -> str:
    if row["kind"] == "clean":
        return "none"
    return f"{row['level']:g}" if row["kind"] == "shuffle" else f"1/{1 / row['level']:g}"


def _in_words(rows: Sequence[Json]) -> str:
    return "; ".join(f"{row['name']} {100 * row['accuracy']['mean']:.1f} %" for row in rows)
