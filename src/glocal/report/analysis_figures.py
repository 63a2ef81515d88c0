"""The figures of `glocal analyze`: values by depth, lines, heads, pictures, a matrix, bars.

Colour and marker encode the kind of operation in all of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from PIL import Image

from glocal.files import printable
from glocal.report.figures import COLOURS, GRID, INK, STYLE, new_figure, svg

KINDS = ("attention", "convolution", "mlp", "coupling", "module")
COLOUR = {kind: COLOURS[i][0] for i, kind in enumerate(KINDS)}
MARKER = dict(zip(KINDS, "os^DP", strict=True))
HEAT = "magma"
DEPTH = "depth: operations in execution order"


@dataclass(frozen=True)
class Bar:
    """Name and colour of a bar."""

    name: str
    kind: str


def by_depth(
    name: str,
    description: str,
    points: Sequence[Any],
    values: Sequence[float | None],
    label: str,
    *,
    zero: bool = False,
    line: bool = True,
    log: bool = False,
    others: Sequence[tuple[str, Sequence[float | None]]] = (),
) -> Markup:
    """Values by depth with a marker for each kind of operation; ``zero`` draws stems from 0."""
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(6.4, 3.5)
        depth = np.arange(1, len(points) + 1)
        for i, (_, of_other) in enumerate(others):
            places = np.linspace(
                1, len(points), len(of_other)
            )  # models may differ in depth: stretched to the same range
            axes.plot(places, _gaps(of_other), color=COLOURS[4 + i][0], linestyle=(0, (4, 3)), linewidth=1.6)
        streams = [getattr(point, "layout", "") for point in points]  # not all kinds of points have one
        for stream in dict.fromkeys(streams) if line else ():
            along = [i for i, of_point in enumerate(streams) if of_point == stream]
            axes.plot(depth[along], _gaps([values[i] for i in along]), color=GRID, linewidth=1.6, zorder=1)
        kinds = [kind for kind in KINDS if any(point.kind == kind for point in points)]
        for kind in kinds:
            chosen = [i for i, p in enumerate(points) if p.kind == kind and values[i] is not None]
            heights = _gaps([values[i] for i in chosen])
            if zero:
                axes.vlines(depth[chosen], 0, heights, color=COLOUR[kind], linewidth=2)
            axes.plot(depth[chosen], heights, MARKER[kind], color=COLOUR[kind], markersize=7)
        if zero:
            axes.axhline(0, color=INK, linewidth=0.9)
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(lambda value, _: "")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set(xlabel=DEPTH, ylabel=label)
        marks = [Line2D([], [], color=COLOUR[k], marker=MARKER[k], linestyle="", label=k) for k in kinds]
        marks += [
            Line2D([], [], color=COLOURS[4 + i][0], linestyle=(0, (4, 3)), label=printable(other))
            for i, (other, _) in enumerate(others)
        ]
        _legend(figure, marks)
        return svg(figure, name, description)


def lines(
    name: str,
    description: str,
    series: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    x: str,
    y: str,
    *,
    ramp: bool = False,
    level: tuple[str, float] | None = None,
    log: bool = False,
) -> Markup:
    """A line for each (name, x, y); ``ramp`` colours them from shallow to deep and names only the ends."""
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(6.4, 3.5)
        marks = []
        for i, (called, xs, ys) in enumerate(series):
            if ramp:
                shade = mpl.colors.to_hex(mpl.colormaps["plasma"](0.08 + 0.72 * i / max(1, len(series) - 1)))
                axes.plot(xs, _gaps(ys), color=shade, linewidth=1.6)
                named = {0: f"first: {called}", len(series) - 1: f"last: {called}"}.get(i)
                if named:
                    marks.append(Line2D([], [], color=shade, label=printable(named)))
            else:
                look: Any = {"color": COLOURS[i % len(COLOURS)][0], "marker": "osD^vPX"[i % 7], "markersize": 6}
                axes.plot(xs, _gaps(ys), linewidth=1.8, **look)
                marks.append(Line2D([], [], label=printable(called), **look))
        if level:
            axes.axhline(level[1], color=INK, linewidth=1, linestyle=(0, (4, 3)))
            axes.set_ylim(bottom=0)
            marks.append(Line2D([], [], color=INK, linestyle=(0, (4, 3)), label=level[0]))
        if log:
            axes.set_xscale("log", base=2)
            axes.set_xticks(sorted({v for _, xs, _ in series for v in xs}))
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.minorticks_off()
        axes.set(xlabel=x, ylabel=y)
        _legend(figure, marks)
        return svg(figure, name, description)


def heads(
    name: str,
    description: str,
    values: Sequence[np.ndarray | None],
    label: str,
    *,
    level: Sequence[Any] = (),
) -> Markup:
    """A dot for each head of each attention layer, and a dash for uniform attention, its ``level`` by layer."""
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(6.4, 3.5)
        for i, found in enumerate(values, start=1):
            if found is None:
                continue
            axes.plot(np.full(len(found), i), found, "o", color=COLOURS[0][0], markersize=5, alpha=0.75)
            axes.plot([i - 0.3, i + 0.3], [found.mean()] * 2, color=COLOURS[1][0], linewidth=2.4)
            if level:
                axes.plot([i - 0.4, i + 0.4], [level[i - 1]] * 2, color=INK, linewidth=1, linestyle=(0, (2, 2)))
        marks = [
            Line2D([], [], color=COLOURS[0][0], marker="o", linestyle="", label="head"),
            Line2D([], [], color=COLOURS[1][0], linewidth=2.4, label="mean over heads"),
        ]
        if level:
            marks.append(Line2D([], [], color=INK, linestyle=(0, (2, 2)), label="uniform attention"))
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set(xlabel="attention layers, in execution order", ylabel=label)
        low, high = axes.get_ylim()
        axes.set_ylim(min(0, low), high + 0.06 * (high - min(0, low)))
        _legend(figure, marks)
        return svg(figure, name, description)


def pictures(
    name: str,
    description: str,
    rows: Sequence[tuple[str, Sequence[np.ndarray | None]]],
    titles: Sequence[str],
    under: np.ndarray | None = None,
) -> Markup:
    """A grid of pictures: (H, W, 3) images, and (h, w) heat maps, optionally over an image.

    Args:
        name: of the figure.
        description: alternative text.
        rows: (name, pictures) of each.
        titles: of the columns.
        under: (rows, H, W, 3) uint8 images under the maps.
    """
    columns = max(len(cells) for _, cells in rows)
    with mpl.rc_context({**STYLE, "axes.grid": False, "font.size": 9}):
        figure = Figure(figsize=(1.45 * columns + 0.3, 1.6 * len(rows) + 0.2), layout="constrained")
        grid: Any = figure.subplots(len(rows), columns, squeeze=False)
        for i, (row, cells) in enumerate(rows):
            for j in range(columns):
                axes: Axes = grid[i, j]
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
                cell = cells[j] if j < len(cells) else None
                if cell is not None:
                    _picture(axes, cell, under[i] if under is not None else None)
                if i == 0 and j < len(titles):
                    axes.set_title("\n".join(map(printable, titles[j].split("\n"))), size=9)
                if j == 0 and row:
                    axes.set_ylabel(printable(row), size=9)
        return svg(figure, name, description, trim=True)


def _picture(axes: Axes, cell: np.ndarray, under: np.ndarray | None) -> None:
    if cell.ndim == 3:
        axes.imshow(cell, interpolation="nearest")
        return
    low, high = min(0.0, float(cell.min())), float(cell.max())
    if low == 0:  # so that nearly uniform maps look uniform
        high = max(high, 2 * float(cell.mean()))
    scaled = (cell - low) / (high - low) if high > low else np.zeros_like(cell)
    if under is None:
        axes.imshow(scaled, cmap=HEAT, vmin=0, vmax=1, interpolation="nearest")
        return
    axes.imshow(over(under, scaled), interpolation="nearest")


def matrix(name: str, description: str, values: np.ndarray, x: str, y: str, label: str) -> Markup:
    """A heat map of a matrix from 0 to 1, with a colour bar."""
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure, axes = new_figure(5.4, 4.6)
        shown = axes.imshow(values, cmap=HEAT, vmin=0, vmax=1, origin="lower", interpolation="nearest",
                            extent=(0.5, values.shape[1] + 0.5, 0.5, values.shape[0] + 0.5), aspect="auto")  # fmt: skip
        bar = figure.colorbar(shown, ax=axes, label=label)
        bar.outline.set_visible(False)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set(xlabel=x, ylabel=y)
        return svg(figure, name, description)


def bars(name: str, description: str, items: Sequence[Any], values: Sequence[float], label: str) -> Markup:
    """A bar for each item, the largest first."""
    order = np.argsort(values)[::-1]
    with mpl.rc_context({**STYLE, "ytick.major.size": 0}):
        figure, axes = new_figure(6.4, 0.9 + 0.3 * len(items))
        for y, i in enumerate(order):
            axes.barh(y, values[i], color=COLOUR[items[i].kind], height=0.72)
        axes.set_yticks(range(len(items)), [printable(items[i].name) for i in order])
        axes.set_ylim(len(items) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(label)
        return svg(figure, name, description)


def _gaps(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]


def _legend(figure: Figure, marks: Sequence[Line2D]) -> None:
    if marks:
        figure.legend(
            handles=marks, loc="outside upper left", ncols=min(len(marks), 4), frameon=False, fontsize=10,
            handletextpad=0.4, columnspacing=1.2, borderaxespad=0,
        )  # fmt: skip


def over(image: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """(H, W, 3) grey image with a heat map of values from 0 to 1 over it."""
    height, width = image.shape[:2]
    large = Image.fromarray(cell.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    heat = mpl.colormaps[HEAT](np.clip(np.asarray(large), 0, 1))[..., :3]
    return np.clip(0.35 * image.mean(2, keepdims=True) / 255 + 0.65 * heat, 0, 1)
