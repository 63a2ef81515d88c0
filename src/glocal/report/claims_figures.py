"""The figures of `glocal claims`: effects with their intervals, arms by seed, curves, and figures of single claims."""

from collections.abc import Sequence
from textwrap import wrap
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from glocal.report.analysis_figures import COLOUR as COLOUR_OF_KIND
from glocal.report.figures import COLOURS, GRID, INK, MARKERS, PAPER, STYLE, new_figure, svg
from glocal.schema import ClaimEntry

SERIES = [light for light, _ in COLOURS]
COLOUR = {"supported": SERIES[2], "contradicted": SERIES[1], "inconclusive": SERIES[7]}
MARKER = {"supported": "o", "contradicted": "X", "inconclusive": "D"}


def effects(claim: ClaimEntry) -> Markup:
    """One row per comparison: the difference with its interval, over the expected range."""
    rows = [comparison for comparison in claim["comparisons"] if comparison["of"] == "value"]
    factor = claim["measure"]["factor"]
    with mpl.rc_context({**STYLE, "ytick.major.size": 0}):
        figure, axes = new_figure(5.8, 0.95 + 0.78 * len(rows))
        bounds = [factor * bound for row in rows for bound in (*row["interval"], 0.0)]
        bounds += [0.0]  # a claim about costs alone has no difference to show
        bounds += [factor * bound for row in rows for bound in row["expected_range"] if bound is not None]
        spread = max(max(bounds) - min(bounds), 1e-9)
        left, right = min(bounds) - 0.12 * spread, max(bounds) + 0.12 * spread
        for y, row in enumerate(rows):
            low, high = row["expected_range"]
            start = left if low is None else factor * low
            width = (right if high is None else factor * high) - start
            axes.barh(y, width, left=start, height=0.34, color=COLOUR["supported"], alpha=0.16, linewidth=0)
            colour = COLOUR[row["verdict"]]
            ends = [factor * bound for bound in row["interval"]]
            axes.plot(ends, [y, y], color=colour, linewidth=3, solid_capstyle="round")
            axes.plot(factor * row["effect"], y, MARKER[row["verdict"]], color=colour, markersize=9)
            _label(axes, y, row["question"])
        axes.axvline(0, color=INK, linewidth=1)
        axes.set(xlim=(left, right), ylim=(len(rows) - 0.6, -0.85), yticks=[])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"difference, {claim['measure']['unit']}")
        axes.xaxis.set_major_locator(MaxNLocator(7, steps=(1, 2, 5, 10)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
        said = "; ".join(f"{row['question']}: {row['verdict']}" for row in rows)
        return svg(figure, "effects", f"Differences with their intervals. {said}")


def arms(claim: ClaimEntry) -> Markup:
    """One row per arm: a dot per seed, and the mean with its interval."""
    rows, factor = claim["arms"], claim["measure"]["factor"]
    with mpl.rc_context({**STYLE, "ytick.major.size": 0}):
        figure, axes = new_figure(5.6, 0.95 + 0.62 * len(rows))
        for y, row in enumerate(rows):
            colour = _colour(y)
            ends = [factor * bound for bound in row["interval"]]
            axes.plot(ends, [y, y], color=colour, linewidth=3, alpha=0.4, solid_capstyle="round")
            seeds = [factor * value for value in row["by_seed"]]
            axes.plot(seeds, np.full(len(seeds), y), "o", color=colour, markerfacecolor=PAPER, markersize=6)
            axes.plot(factor * row["mean"], y, "|", color=INK, markersize=15, markeredgewidth=2)
            _label(axes, y, row["name"])
        axes.set(ylim=(len(rows) - 0.6, -0.85), yticks=[])
        axes.spines["left"].set_visible(False)
        unit = "%" if factor == 100 else claim["measure"]["unit"]
        axes.set_xlabel(f"{claim['measure']['name'].split(' (')[0]}, {unit}" if len(unit) < 5 else unit)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
        return svg(figure, "arms", "One row per arm: a ring per seed, a bar at their mean, its interval")


def curves(claim: ClaimEntry) -> Markup:
    """Validation accuracy during training, one line per run."""
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(5.6, 3.7)
        marks = []
        for i, row in enumerate(claim["arms"]):
            look: Any = {"color": _colour(i), "marker": MARKERS[i % len(MARKERS)], "markersize": 4}
            for curve in row["curves"]:
                axes.plot(
                    [point["step"] for point in curve], [100 * point["score"] for point in curve], linewidth=1.3, **look
                )
            marks.append(Line2D([], [], label=row["name"], **look))
        axes.set(xlabel="training steps", ylabel="top-1 accuracy, %")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        _legend(axes, marks)
        return svg(figure, "curves", "Top-1 accuracy on the validation images over training steps, one line per run")


def blocks(claim: ClaimEntry) -> Markup:
    """Change of the highest frequency by each block of each model: trained filled, untrained hollow."""
    found = claim["details"]["blocks"]
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(9.6, 4.2)
        start = 0
        for model in dict.fromkeys(block["model"] for block in found):
            of_model = [block for block in found if block["model"] == model]
            for x, block in enumerate(of_model, start):
                colour, marker = COLOUR_OF_KIND[block["kind"]], "os"[block["kind"] == "convolution"]
                axes.plot([x, x], [0, block["trained"]], color=colour, linewidth=1.6)
                axes.plot(x, block["untrained"], marker, color=colour, markerfacecolor=PAPER, markersize=4.5)
                axes.plot(x, block["trained"], marker, color=colour, markersize=6)
            middle = start + (len(of_model) - 1) / 2
            axes.annotate(
                model.removesuffix("_micro"), (middle, 0), xycoords=axes.get_xaxis_transform(), xytext=(0, -6),
                textcoords="offset points", ha="center", va="top", annotation_clip=False,
            )  # fmt: skip
            start += len(of_model) + 1
            axes.axvline(start - 1, color=GRID, linewidth=0.8)
        axes.axhline(0, color=INK, linewidth=1)
        axes.set(xticks=[], ylabel="change at the highest\nfrequency, nats", xlim=(-1, start - 1))
        marks = [
            Line2D([], [], color=COLOUR_OF_KIND[kind], marker=marker, linestyle="", markerfacecolor=face, label=label)
            for kind, marker, face, label in (
                ("attention", "o", COLOUR_OF_KIND["attention"], "attention"),
                ("convolution", "s", COLOUR_OF_KIND["convolution"], "convolution"),
                ("attention", "o", PAPER, "with random weights"),
            )
        ]
        _legend(axes, marks)
        return svg(figure, "blocks", "Change of the highest frequency by each attention or convolution block")


def depth(claim: ClaimEntry) -> Markup:
    """R^2 by depth, one line per padding; dashed with random weights."""
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(5.6, 3.7)
        paddings = list(dict.fromkeys(line["padding"] for line in claim["details"]["depth"]))
        for line in claim["details"]["depth"]:
            i, trained = paddings.index(line["padding"]), line["state"] == "trained"
            axes.plot(
                range(1, len(line["r2"]) + 1), line["r2"], color=SERIES[i], marker=MARKERS[i], markersize=5,
                linestyle="-" if trained else (0, (3, 2)), markerfacecolor=SERIES[i] if trained else PAPER,
            )  # fmt: skip
        axes.axhline(0, color=INK, linewidth=1)
        axes.set(xlabel="depth: blocks of the network", ylabel="R² of the probe")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        marks = [Line2D([], [], color=SERIES[i], marker=MARKERS[i], label=name) for i, name in enumerate(paddings)]
        marks.append(Line2D([], [], color=INK, linestyle=(0, (3, 2)), label="random weights"))
        _legend(axes, marks)
        return svg(figure, "depth", "R² of a linear probe for row and column, by depth and padding")


def sizes(claim: ClaimEntry) -> Markup:
    """MACs over map size: formulas as lines, counts as marks."""
    rows = claim["details"]["sizes"]
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(5.6, 3.7)
        xs = [row["side"] for row in rows]
        for i, (key, name) in enumerate((("msa", "global"), ("ipsa", "inside windows"), ("cpsa", "between windows"))):
            axes.plot(xs, [row[f"formula {key}"] / 1e9 for row in rows], color=SERIES[i], linewidth=1.6)
            counted = [row[f"counted {key}"] / 1e9 for row in rows]
            axes.plot(xs, counted, MARKERS[i], color=SERIES[i], markersize=7, label=name)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set(xlabel="side of the map, pixels", ylabel="GMACs", xticks=xs)
        marks = [Line2D([], [], color=SERIES[i], marker=MARKERS[i], label=line.get_label()) for i, line in
                 enumerate(axes.lines[1::2])]  # fmt: skip
        _legend(axes, marks)
        return svg(figure, "sizes", "MACs of three kinds of attention over the size of the map")


def _colour(i: int) -> str:
    return SERIES[i % len(SERIES)]


def _legend(axes: Axes, marks: Sequence[Line2D]) -> None:
    figure: Any = axes.figure
    figure.legend(
        handles=list(marks), loc="outside upper left", ncols=3 if figure.get_figwidth() > 8 else 2, frameon=False,
        fontsize=10, handletextpad=0.4, columnspacing=1.2, borderaxespad=0,
    )  # fmt: skip


def _tick(value: float) -> str:
    return f"{value:g}".replace("-", "\u2212")


def _label(axes: Axes, y: float, text: str) -> None:
    """A name above its row, on top of the grid lines."""
    axes.text(
        0, y - 0.24, "\n".join(wrap(text, 66)), transform=axes.get_yaxis_transform(), va="bottom", size=10.5,
        linespacing=1.1, bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.2},
    )  # fmt: skip
