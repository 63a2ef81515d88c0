"""The figures of a report, as SVG that follows the page's light and dark.

Text stays text, nothing is scripted, and what comes from data is escaped by matplotlib's SVG writer and never read as
mathematics. Ink and grid are drawn in two marker colours that become CSS variables.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

# Okabe and Ito 2008, told apart with every kind of colour vision; without black and the yellow that white swallows.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F6EB3", "#8C6D31")
MARKERS = "osD^vP*X"
INK, GRID, PAPER = "#010203", "#040506", "#070809"
VARIABLES = {INK: "var(--ink)", GRID: "var(--grid)", PAPER: "var(--paper)"}
STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}
Row = Mapping[str, Any]


class Looks:
    """A colour and a marker for each model, the same in every figure."""

    def __init__(self, models: Sequence[str]):
        self.colour = {model: COLOURS[i % len(COLOURS)] for i, model in enumerate(models)}
        self.marker = {model: MARKERS[i % len(MARKERS)] for i, model in enumerate(models)}


def leaderboard(rows: Sequence[Row], looks: Looks) -> Markup:
    """Top-1 accuracy with its interval, best first; models tied with the best are filled, the others hollow."""
    with mpl.rc_context(STYLE):
        figure, axes = _figure(7.4, 0.9 + 0.42 * len(rows))
        for y, row in enumerate(rows):
            low, high = (100 * bound for bound in row["top1_ci"])
            colour = looks.colour[row["model"]]
            axes.plot([low, high], [y, y], color=colour, linewidth=2.5, solid_capstyle="round")
            face = colour if row["tied_with_best"] else PAPER
            axes.plot(100 * row["top1_mean"], y, looks.marker[row["model"]], color=colour, markerfacecolor=face, ms=9)
        axes.set_yticks(range(len(rows)), [row["model"] for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("top-1 accuracy, %")
        axes.grid(visible=False, axis="y")
        return _svg(figure, "leaderboard", "Top-1 accuracy of each model with its 95 % interval")


def trade_off(rows: Sequence[Row], looks: Looks, cost: str, label: str, unit: float) -> Markup:
    """Accuracy against a cost; the Pareto front, what no other model beats in both, is joined by a line."""
    with mpl.rc_context(STYLE):
        figure, axes = _figure(5.2, 3.5)
        front = pareto([row[cost] for row in rows], [row["top1_mean"] for row in rows])
        points = [(rows[i][cost] / unit, 100 * rows[i]["top1_mean"]) for i in front]
        if len(points) > 1:
            axes.plot(*zip(*points, strict=True), color=INK, linewidth=1, linestyle="--", zorder=1)
        for i, row in enumerate(rows):
            x, y, colour = row[cost] / unit, 100 * row["top1_mean"], looks.colour[row["model"]]
            low, high = (100 * bound for bound in row["top1_ci"])
            axes.plot([x, x], [low, high], color=colour, linewidth=1.5, alpha=0.6)
            face = colour if i in front else PAPER
            axes.plot(x, y, looks.marker[row["model"]], color=colour, markerfacecolor=face, ms=9)
            axes.annotate(row["model"], (x, y), xytext=(8, 6), textcoords="offset points", fontsize=10)
        axes.set_xlabel(label)
        axes.set_ylabel("top-1 accuracy, %")
        axes.margins(x=0.28, y=0.12)
        axes.set_xlim(left=max(0, axes.get_xlim()[0]))
        return _svg(figure, f"trade-{cost}", f"Top-1 accuracy against {label}; the dashed line is the Pareto front")


def pareto(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """Indices of the points that no other matches or beats in both cost (lower) and score (higher), by cost."""
    front: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -scores[i])):
        if not front or scores[i] > scores[front[-1]]:
            front.append(i)
    return front


def curves(runs: Sequence[Row], looks: Looks, x: str, label: str) -> Markup:
    """Validation accuracy over the training, a line a run."""
    with mpl.rc_context(STYLE):
        figure, axes = _figure(5.2, 3.5)
        seen = set()
        for run in runs:
            if run["curve"]:
                name = None if run["model"] in seen else run["model"]
                seen.add(run["model"])
                xs = [point[x] for point in run["curve"]]
                ys = [100 * point["val_top1"] for point in run["curve"]]
                marker = looks.marker[run["model"]]
                axes.plot(xs, ys, color=looks.colour[run["model"]], linewidth=1.6, label=name, marker=marker, ms=4)
        axes.set_xlabel(label)
        axes.set_ylabel("top-1 accuracy, %")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.legend(loc="lower right")
        return _svg(figure, f"curves-{x}", f"Top-1 accuracy on the test images against {label}, one line a run")


def fractions(summary: Sequence[Row], looks: Looks) -> Markup:
    """Accuracy against the share of the training images."""
    with mpl.rc_context(STYLE):
        figure, axes = _figure(7.4, 3.6)
        for model in dict.fromkeys(row["model"] for row in summary):
            rows = sorted((row for row in summary if row["model"] == model), key=lambda row: row["fraction"])
            xs, ys = [row["fraction"] for row in rows], [100 * row["top1_mean"] for row in rows]
            bounds = np.array([row["top1_ci"] for row in rows]).T * 100
            axes.plot(xs, ys, color=looks.colour[model], marker=looks.marker[model], label=model)
            axes.fill_between(xs, *bounds, color=looks.colour[model], alpha=0.15, linewidth=0)
        axes.set_xscale("log")
        axes.set_xticks(sorted({row["fraction"] for row in summary}))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
        axes.minorticks_off()
        axes.set_xlabel("share of the training images")
        axes.set_ylabel("top-1 accuracy, %")
        axes.legend(loc="lower right")
        return _svg(figure, "fractions", "Top-1 accuracy against the share of the training images")


def confusion(counts: Sequence[Sequence[int]], classes: Sequence[str], name: str, model: str) -> Markup:
    """Which class (row) was taken for which (column), as shares of the row; names up to 25 classes."""
    matrix = np.asarray(counts, dtype=float)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        side = min(2.6 + 0.34 * len(classes), 7.4)
        figure, axes = _figure(side, side)
        axes.imshow(shares, cmap="Blues" if len(classes) else None, vmin=0, vmax=1, interpolation="nearest")
        if len(classes) <= 25:
            labels = [label if len(label) <= 18 else label[:17] + "…" for label in classes]
            axes.set_xticks(range(len(classes)), labels, rotation=90)
            axes.set_yticks(range(len(classes)), labels)
        if len(classes) <= 12:
            for row, column in np.ndindex(*shares.shape):
                if matrix[row, column]:
                    light = shares[row, column] > 0.5
                    colour = "#ffffff" if light else "#10202c"
                    axes.text(column, row, f"{matrix[row, column]:.0f}", ha="center", va="center", color=colour, size=8)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        return _svg(figure, name, f"Confusion matrix of {model}")


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _svg(figure: Figure, name: str, description: str) -> Markup:
    """The figure's SVG element, its ids made unique by ``name``, with a description for those who do not see it."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name, "svg.id": f"figure-{name}"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    start = text.index(">") + 1
    opening = text[: start - 1].replace("<svg ", '<svg role="img" ', 1)
    body = text[start:]
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(url\(|href=")#', rf"\1#{name}-", body)
    return Markup(opening + f' aria-label="{Markup.escape(description)}">' + body)
