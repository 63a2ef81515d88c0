"""SVG figures of a report that follow the page's light or dark scheme.

Text stays text, there are no scripts, and data is escaped by matplotlib's SVG writer and never parsed as mathematics.
Every colour is drawn as a placeholder that becomes a CSS variable of the page.
"""

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox

from glocal.report.words import Words

# Okabe and Ito 2008, distinguishable with every kind of colour vision; their yellow, orange and sky blue darkened, so
# that each has 3:1 on its paper (WCAG 2.2, 1.4.11). Light, dark.
COLOURS = (
    ("#0072b2", "#4ba3e3"),
    ("#d55e00", "#f0803c"),
    ("#009e73", "#2cc295"),
    ("#c0609a", "#e39bc4"),
    ("#a87400", "#f0b84a"),
    ("#3a8fc4", "#8fd0f7"),
    ("#7f6eb3", "#a798db"),
    ("#8c6d31", "#c4a46a"),
)
MARKERS = "osD^vPX"  # seven against eight colours: 56 models before a pair repeats
INK, GRID, PAPER, RIGHT, WRONG = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f"
VARIABLES = {INK: "ink", GRID: "grid", PAPER: "paper", RIGHT: "right", WRONG: "wrong"} | {
    light: f"series-{i}" for i, (light, _) in enumerate(COLOURS)
}
MOST_NAMED_CLASSES = 25
MOST_NUMBERED_CLASSES = 12
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
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.markeredgewidth": 1.6,
}
Row = Mapping[str, Any]


class Looks:
    """A colour and a marker for each model, the same in every figure."""

    def __init__(self, models: Sequence[str]):
        self.colour = {model: COLOURS[i % len(COLOURS)][0] for i, model in enumerate(models)}
        self.marker = {model: MARKERS[i % len(MARKERS)] for i, model in enumerate(models)}

    def swatch(self, model: str) -> Markup:
        """The model's marker in its colour, for use in text."""
        style = MarkerStyle(self.marker[model])
        outline = np.asarray(style.get_path().transformed(style.get_transform()).to_polygons()[0])
        points = " ".join(f"{x:.2f},{-y:.2f}" for x, y in outline.tolist())
        variable = VARIABLES[self.colour[model]]
        return Markup(
            '<svg class="swatch" aria-hidden="true" viewBox="-0.6 -0.6 1.2 1.2">'
            f'<polygon points="{points}" style="fill:var(--{variable})"/></svg>'
        )

    def point(self, axes: Axes, x: float, y: float, model: str, *, filled: bool) -> None:
        """The model's marker; hollow unless ``filled``."""
        colour = self.colour[model]
        axes.plot(x, y, self.marker[model], color=colour, markerfacecolor=colour if filled else PAPER, markersize=8.5)


def leaderboard(rows: Sequence[Row], looks: Looks, words: Words, *, narrow: bool = False) -> Markup:
    """The score with its interval, best first; models tied with the best are filled, the others hollow.

    Args:
        rows: of the summary, one fraction, best first; each with its ``score`` and ``interval``.
        looks: of the models.
        words: names of the score.
        narrow: for phones, with names above the intervals.
    """
    with mpl.rc_context({**STYLE, "font.size": 12 if narrow else 14, "ytick.major.size": 0}):
        figure, axes = new_figure(*((5.0, 0.7 + 0.62 * len(rows)) if narrow else (14.0, 0.9 + 0.5 * len(rows))))
        beside = axes.get_yaxis_transform()  # x in axes fraction, y as a row
        for y, row in enumerate(rows):
            low, high = (100 * bound for bound in row["interval"])
            axes.plot([low, high], [y, y], color=looks.colour[row["model"]], linewidth=3, solid_capstyle="round")
            looks.point(axes, 100 * row["score"], y, row["model"], filled=row["tied_with_best"])
            weight = "bold" if row["tied_with_best"] else "normal"
            value = f"{100 * row['score']:.1f} %  {_standing(row, best=y == 0)}"
            if narrow:
                axes.text(0, y - 0.3, row["model"], transform=beside, va="bottom", weight=weight)
                axes.text(1, y - 0.3, value, transform=beside, va="bottom", ha="right", weight=weight)
            else:
                place: Any = {
                    "xycoords": beside,
                    "textcoords": "offset points",
                    "va": "center",
                    "annotation_clip": False,
                }
                axes.annotate(row["model"], (0, y), xytext=(-14, 0), ha="right", weight=weight, **place)
                axes.annotate(value, (1, y), xytext=(14, 0), weight=weight, **place)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_ylim(len(rows) - 0.5, -0.85 if narrow else -0.5)
        axes.set_xlabel(f"{words.long}, %")
        axes.xaxis.set_major_locator(MaxNLocator(5 if narrow else 9, steps=(1, 2, 5, 10)))
        name = "leaderboard-narrow" if narrow else "leaderboard"
        return svg(figure, name, f"{words.title} with 95 % intervals: {_in_words(rows)}")


def _standing(row: Row, *, best: bool) -> str:
    if best:
        return "best"
    return "tie" if row["tied_with_best"] else f"{100 * row['difference_to_best']:+.1f}".replace("-", "\u2212")


def _in_words(rows: Sequence[Row]) -> str:
    return "; ".join(
        f"{row['model']} {100 * row['score']:.1f} ({100 * row['interval'][0]:.1f} to {100 * row['interval'][1]:.1f})"
        for row in rows
    )


def trade_off(rows: Sequence[Row], looks: Looks, words: Words, cost: str, label: str, unit: float = 1) -> Markup:
    """The score against a cost, with the Pareto front as a staircase.

    Models on the front are filled. Names are placed beside their marks without overlap.
    """
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(5.2, 3.6)
        xs = [row[cost] / unit for row in rows]
        ys = [100 * row["score"] for row in rows]
        front = pareto(xs, ys)
        for i, row in enumerate(rows):
            low, high = (100 * bound for bound in row["interval"])
            axes.plot([xs[i], xs[i]], [low, high], color=looks.colour[row["model"]], linewidth=1.5, alpha=0.55)
            looks.point(axes, xs[i], ys[i], row["model"], filled=i in front)
        if max(xs) > 6 * min(xs) > 0:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))
        axes.margins(x=0.16, y=0.1)
        left, right = axes.get_xlim()
        bottom, top = axes.get_ylim()
        axes.set(xlim=(left, right), ylim=(bottom, top), xlabel=label, ylabel=f"{words.long}, %")
        stairs = [xs[front[0]], *(xs[i] for i in front), right], [bottom, *(ys[i] for i in front), ys[front[-1]]]
        axes.plot(*stairs, color=INK, linewidth=1, linestyle=(0, (4, 3)), drawstyle="steps-post", zorder=1)
        _name_points(figure, axes, xs, ys, [row["model"] for row in rows])
        described = f"{words.title} against {label}; on the Pareto front: {', '.join(rows[i]['model'] for i in front)}"
        return svg(figure, f"trade-{cost}", described)


def pareto(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """Indices of the points that no other matches or beats in both cost (lower) and score (higher), by cost."""
    front: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -scores[i])):
        if not front or scores[i] > scores[front[-1]]:
            front.append(i)
    return front


def _name_points(figure: Figure, axes: Axes, xs: Sequence[float], ys: Sequence[float], names: Sequence[str]) -> None:
    """Put each name at the first free of eight positions around its point."""
    _quietly(figure.draw_without_rendering)
    marks = axes.transData.transform(np.column_stack([xs, ys]))
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in marks]
    frame = axes.get_window_extent()
    for x, y, name in zip(xs, ys, names, strict=True):
        for dx, dy in ((9, 5), (9, -5), (-9, 5), (-9, -5), (9, 14), (-9, 14), (9, -14), (-9, -14)):
            text = axes.annotate(
                name, (x, y), xytext=(dx, dy), textcoords="offset points",
                ha="left" if dx > 0 else "right", va="bottom" if dy > 0 else "top",
            )  # fmt: skip
            text.set_in_layout(False)
            box = _quietly(text.get_window_extent)
            if box.x0 >= frame.x0 and box.x1 <= frame.x1 + 4 and not box.count_overlaps(taken):
                taken.append(box)
                break
            text.remove()


def curves(runs: Sequence[Row], looks: Looks, words: Words, x: str, label: str) -> Markup:
    """The validation score during training, one line per run."""
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(5.2, 3.6)
        for run in runs:
            points = run["curve"]
            axes.plot(
                [point[x] for point in points],
                [100 * point["val_score"] for point in points],
                color=looks.colour[run["model"]],
                marker=looks.marker[run["model"]],
                markevery=max(1, len(points) // 8),
                markersize=4,
                linewidth=1.6,
            )
        axes.set(xlabel=label, ylabel=f"{words.long}, %")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        return svg(figure, f"curves-{x}", f"{words.title} on the validation images against {label}, one line per run")


def race(race: Row, looks: Looks, words: Words) -> Markup:
    """The mean score of each model as far as it was trained; who left ends in a hollow mark, dashed lines are looks."""
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(7.2, 3.8)
        for model, points in race["curves"].items():
            xs, ys = [100 * done for done, _ in points], [100 * score for _, score in points]
            axes.plot(xs, ys, color=looks.colour[model], linewidth=1.8)
            looks.point(axes, xs[-1], ys[-1], model, filled=model in race["still"])
        for done in sorted({look["done"] for look in race["looks"]}):
            axes.axvline(100 * done, color=INK, linewidth=0.8, linestyle=(0, (2, 4)), zorder=1)
        ends = [(model, points[-1]) for model, points in race["curves"].items()]
        axes.set_xlim(0, 118)
        axes.set_xticks([0, 20, 40, 60, 80, 100])
        axes.set(xlabel="training, % of the budget", ylabel=f"{words.long}, %")
        xs, ys = [100 * done for _, (done, _) in ends], [100 * score for _, (_, score) in ends]
        _name_points(figure, axes, xs, ys, [model for model, _ in ends])
        left = [model for model, _ in ends if model not in race["still"]]
        described = f"{words.title} during the race; {', '.join(left) if left else 'no model'} left before the end"
        return svg(figure, "race", described)


def fractions(summary: Sequence[Row], looks: Looks, words: Words) -> Markup:
    """The score against the fraction of the training images, on a logarithmic axis, with 95 % intervals."""
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(5.2, 3.6)
        _bands(axes, summary, looks, lambda row: row["fraction"])
        axes.set_xscale("log")
        axes.set_xticks(sorted({row["fraction"] for row in summary}))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
        axes.minorticks_off()
        axes.set(xlabel="fraction of the training images", ylabel=f"{words.long}, %")
        return svg(figure, "fractions", f"{words.title} against the fraction of the training images")


def distances(rows: Sequence[Row], looks: Looks, chance: float) -> Markup:
    """Accuracy against the distance over which a model must integrate, with 95 % intervals.

    Args:
        rows: of ``by_distance``, one fraction.
        looks: of the models.
        chance: chance accuracy, drawn as a dashed line.
    """
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(5.2, 3.6)
        _bands(axes, rows, looks, lambda row: sum(row["distance"]) / 2)
        axes.axhline(100 * chance, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate("chance", (0.01, 100 * chance), xycoords=("axes fraction", "data"), va="bottom", size=9)
        axes.set_ylim(top=101)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set(xlabel="distance needed, pixels", ylabel="top-1 accuracy, %")
        return svg(figure, "distances", "Top-1 accuracy against the distance needed")


def _bands(axes: Axes, rows: Sequence[Row], looks: Looks, x: Callable[[Row], float]) -> None:
    """A line through the rows of each model, with a band of its intervals."""
    for model in dict.fromkeys(row["model"] for row in rows):
        own = sorted((row for row in rows if row["model"] == model), key=x)
        xs, ys = [x(row) for row in own], [100 * row["score"] for row in own]
        low, high = np.array([row["interval"] for row in own]).T * 100
        axes.fill_between(xs, low, high, color=looks.colour[model], alpha=0.14, linewidth=0)
        axes.plot(xs, ys, color=looks.colour[model], marker=looks.marker[model], markersize=6, linewidth=1.8)


def confusion(counts: Sequence[Sequence[int]], classes: Sequence[str], name: str, model: str) -> Markup:
    """Confusion matrix (rows true, columns predicted), normalised by row, with one hue for correct and one for wrong.

    Wrong predictions are shaded by a root of their fraction, so that rare ones are visible. Beyond 25 classes the
    matrix is an image without names.
    """
    matrix = np.asarray(counts, dtype=float)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    right = np.eye(len(classes), dtype=bool)
    strength = np.where(right, shares, 0.9 * shares**0.4)
    with mpl.rc_context({**STYLE, "axes.grid": False, "xtick.major.size": 0, "ytick.major.size": 0}):
        side = min(2.8 + 0.36 * len(classes), 7.4)
        figure, axes = new_figure(side, side)
        if len(classes) <= MOST_NAMED_CLASSES:
            _named_cells(axes, matrix, shares, strength, right)
            labels = [label if len(label) <= 18 else label[:17] + "…" for label in classes]
            axes.set_xticks(range(len(classes)), labels, rotation=45, ha="right", rotation_mode="anchor")
            axes.set_yticks(range(len(classes)), labels)
        else:
            pixels = np.empty((*shares.shape, 4))
            pixels[right, :3], pixels[~right, :3] = mpl.colors.to_rgb("#2f8fd0"), mpl.colors.to_rgb("#e0702a")
            pixels[..., 3] = strength  # mid tones, visible on white and on black
            axes.imshow(pixels, interpolation="nearest")
        axes.set(xlim=(-0.5, len(classes) - 0.5), ylim=(len(classes) - 0.5, -0.5), aspect="equal")
        axes.set(xlabel="predicted", ylabel="true")
        return svg(figure, name, f"Confusion matrix of {model}; its largest entries are listed beside it", trim=True)


def _named_cells(axes: Axes, matrix: np.ndarray, shares: np.ndarray, strength: np.ndarray, right: np.ndarray) -> None:
    for row, column in zip(*np.nonzero(matrix), strict=True):
        colour = RIGHT if right[row, column] else WRONG
        alpha = strength[row, column]
        cell = Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, color=colour, alpha=alpha, linewidth=0, clip_on=False)
        axes.add_patch(cell)
        if len(matrix) <= MOST_NUMBERED_CLASSES:
            share = 100 * shares[row, column]
            number = f"{share:.0f}" if share >= 1 else "<1"
            ink = PAPER if alpha > 0.6 else INK
            axes.text(column, row, number, ha="center", va="center", color=ink, size=9)


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure of this size in inches, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _quietly(draw: Any) -> Any:
    """Draw without warnings about missing glyphs: the page's fonts draw the text."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from", UserWarning)
        return draw()


def svg(figure: Figure, name: str, description: str, *, trim: bool = False) -> Markup:
    """The figure's SVG element, its ids made unique by ``name``, with a description as alternative text.

    ``trim`` removes empty margins.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        bounds = "tight" if trim else None
        _quietly(lambda: figure.savefig(buffer, format="svg", transparent=True, metadata=metadata, bbox_inches=bounds))
    text = buffer.getvalue()
    text = re.sub(
        r"<[^>]*>", lambda tag: _adapt(tag[0], name), text[text.index("<svg") :]
    )  # only tags: text is unchanged
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{escape(description)}" ', 1))


def _adapt(tag: str, name: str) -> str:
    """A tag of a figure with unique ids and the page's colours."""
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = re.sub(r'(url\(|href=")#', rf"\1#{name}-", tag)
    return re.sub("#[0-9a-f]{6}", lambda colour: _variable(colour[0]), tag)


def _variable(colour: str) -> str:
    return f"var(--{VARIABLES[colour]})" if colour in VARIABLES else colour


def stand_alone(svg: str) -> str:
    """A standalone figure with the values of the page's colour variables for light and dark."""
    # ink, grid and paper as in report/templates/style.css
    light = {VARIABLES[INK]: "#18202c", VARIABLES[GRID]: "#dbe0e8", VARIABLES[PAPER]: "#fff"}
    dark = {VARIABLES[INK]: "#e7eaf0", VARIABLES[GRID]: "#343d4c", VARIABLES[PAPER]: "#12161d"}
    for i, (on_light, on_dark) in enumerate(COLOURS):
        light[f"series-{i}"], dark[f"series-{i}"] = on_light, on_dark
    styles = ["".join(f"--{name}:{value};" for name, value in theme.items()) for theme in (light, dark)]
    at_night = f"@media(prefers-color-scheme:dark){{svg{{{styles[1]}}}}}"
    style = f"<style>svg{{{styles[0]}background:var(--paper)}}{at_night}</style>"
    svg = re.sub("#[0-9a-f]{6}", lambda colour: _variable(colour[0]), svg)
    return re.sub(r"(<svg[^>]*>)", lambda match: match[1] + style, svg, count=1)
