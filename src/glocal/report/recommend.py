"""The page of `glocal recommend`: needs of the images, and backbones to compare first."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from PIL import Image

from glocal.files import atomic_write_text
from glocal.report.figures import COLOURS, INK, STYLE, Looks, new_figure, svg
from glocal.report.page import environment, shown
from glocal.report.thumbnails import thumbnail
from glocal.schema import ImageNeed, NeedCondition, RecommendResults

_KINDS = {
    "shuffle": ("Without layout", "patches along a side, shuffled", COLOURS[1][0], "o"),
    "blur": ("Without detail", "width of the blur, as a fraction of the side", COLOURS[0][0], "s"),
}
_MEANS = {
    "shuffle": "Patches in random order: the content of patches is kept, their position is lost.",
    "blur": "Gaussian blur: positions are kept, fine detail is lost.",
}
SHOWN = 84  # pixels of a picture's side


def write_recommendation(
    results: RecommendResults, out: Path, *, pictures: Mapping[str, Image.Image] | None = None
) -> Path:
    """Write OUT/report.html atomically; returns its path.

    Args:
        results: contents of results.json (docs/recommend.md).
        out: an existing folder.
        pictures: of a validation image by the name of the condition; re-encoded here, never passed through.
    """
    path = out / "report.html"
    atomic_write_text(path, render_recommendation(results, pictures=pictures))
    return path


def render_recommendation(results: RecommendResults, *, pictures: Mapping[str, Image.Image] | None = None) -> str:
    """The page as text: no script, no request, everything from data escaped."""
    results = shown(results)
    models = [one["model"] for one in results["recommended"]]
    looks = Looks(models)
    return (
        environment()
        .get_template("recommend.html.j2")
        .render(
            results=results,
            without_pictures=pictures is None,
            colours=COLOURS,
            swatch={model: looks.swatch(model) for model in models},
            panels=[_panel(results["need"], kind, pictures or {}) for kind in _KINDS],
        )
    )


def _panel(need: ImageNeed, kind: str, pictures: Mapping[str, Image.Image]) -> Mapping[str, Any]:
    names = [row["name"] for row in _rows(need, kind) if row["name"] in pictures]
    return {
        "title": _KINDS[kind][0],
        "means": _MEANS[kind],
        "images": [(name, *thumbnail(pictures[name], SHOWN)) for name in names],
        "figure": curve(need, kind),
    }


def _rows(need: ImageNeed, kind: str) -> list[NeedCondition]:
    """From none to strong."""
    return [row for row in need["conditions"] if row["kind"] in ("clean", kind)]


def curve(need: ImageNeed, kind: str) -> Markup:
    """Accuracy of the reference under one kind of disturbance, from none to strong, with 95 % intervals."""
    title, label, colour, marker = _KINDS[kind]
    rows = _rows(need, kind)
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(5.2, 3.4)
        xs, ys = range(len(rows)), [100 * row["accuracy"]["mean"] for row in rows]
        low, high = ([100 * row["accuracy"][end] for row in rows] for end in ("low", "high"))
        axes.fill_between(xs, low, high, color=colour, alpha=0.16, linewidth=0)
        axes.plot(xs, ys, color=colour, marker=marker, markersize=6, linewidth=1.8)
        axes.axhline(100 * need["chance"], color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate("chance", (0.01, 100 * need["chance"]), xycoords=("axes fraction", "data"), va="bottom", size=9)
        axes.set_xticks(xs, [_level(row) for row in rows])
        axes.set_ylim(0, 101)
        axes.set(xlabel=label, ylabel="top-1 of the reference, %")
        return svg(figure, f"need-{kind}", f"{title}: {_in_words(rows)}")


def _level(row: NeedCondition) -> str:
    if row["kind"] == "clean":
        return "none"
    return f"{row['level']:g}" if row["kind"] == "shuffle" else f"1/{1 / row['level']:g}"


def _in_words(rows: Sequence[NeedCondition]) -> str:
    return "; ".join(f"{row['name']} {100 * row['accuracy']['mean']:.1f} %" for row in rows)
