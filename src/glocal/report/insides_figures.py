"""The figures of `glocal compare --analyze`; models have the same colours and markers as on the whole page."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator
from PIL import Image

from glocal.report.analysis_figures import HEAT
from glocal.report.figures import INK, STYLE, Looks, new_figure, svg

Json = Mapping[str, Any]
MASS = 0.95  # of a receptive field, in the definition of its area
LIGHTENED, DARKEST = 0.5, 0.25  # gamma of a picture, and the smallest coloured value
KINDS = {
    "convolution": "convolution",
    "attention": "attention",
    "mlp": "MLP",
    "coupling": "coupling",
    "module": "other",
}
"""Names of the kinds of operations."""


def ablations(models: Sequence[Json], looks: Looks) -> Markup:
    """A bar for each kind of operation of each model: predictions that change without it."""
    bars = sum(len(model["parts"]["locality"]) for model in models)
    with mpl.rc_context({**STYLE, "ytick.major.size": 0}):
        figure, axes = new_figure(5.2, 0.75 + 0.27 * bars + 0.36 * len(models))
        beside = axes.get_yaxis_transform()  # x in axes fraction, y in data coordinates
        y, ticks, said = 0.0, {}, []
        for model in models:
            axes.text(0, y, model["model"], transform=beside, va="center", weight="bold")
            for group in sorted(model["parts"]["locality"], key=lambda group: [*KINDS].index(group["kind"])):
                y += 1
                changed = 100 * group["changed"]
                joins = group["kind"] in ("convolution", "attention")
                axes.barh(y, changed, color=looks.colour[model["model"]], height=0.74, alpha=1 if joins else 0.4)
                axes.text(changed + 1.2, y, f"{changed:.0f}", va="center", size=10)
                ticks[y] = _called(group)
                said.append(f"{model['model']} without {_called(group)} {changed:.0f}")
            y += 1.35
        axes.set_yticks(list(ticks), list(ticks.values()))
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set(xlim=(0, 108), ylim=(y - 0.7, -0.7), xlabel="predictions that change without it, %")
        axes.set_xticks(range(0, 101, 20))
        return svg(figure, "ablations", "Predictions that change without a kind of operation, %: " + "; ".join(said))


def _called(group: Json) -> str:
    return group["name"].removeprefix("all ") if group["kind"] == "coupling" else KINDS[group["kind"]]


def heat(field: Sequence[Sequence[float]]) -> Image.Image:
    """A receptive field as a picture: black outside the area with 95 % of it, weak values inside brightened."""
    values = np.asarray(field)
    order = np.sort(values, axis=None)[::-1]
    least = order[np.searchsorted(order.cumsum(), MASS * order.sum())]
    shown = np.where(values >= least, DARKEST + (1 - DARKEST) * values**LIGHTENED, 0)
    return Image.fromarray((255 * mpl.colormaps[HEAT](shown)[..., :3]).astype(np.uint8))


def distances(models: Sequence[Json], looks: Looks) -> Markup:
    """Mean attention distance by depth."""
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(5.2, 3.6)
        for model in models:
            points = model["parts"]["attention"]
            _line(axes, attention_depths(model), [point["distance"] for point in points], model["model"], looks)
        level = max(point["everywhere"] for model in models for point in model["parts"]["attention"])
        axes.axhline(level, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        furthest = max(point["distance"] for model in models for point in model["parts"]["attention"])
        axes.set(ylim=(0, 1.22 * max(level, furthest)), ylabel="distance, pixels of the image")
        axes.annotate("dashed: uniform attention", (0.01, 0.99), xycoords="axes fraction", va="top", size=9)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        _depth(axes)
        return svg(figure, "attention-distance", "Mean attention distance along the depth")


def attention_depths(model: Json) -> list[float]:
    """Depth of the attention layers in %: from the operations of `fourier`, else evenly spaced."""
    count, operations = len(model["parts"]["attention"]), model["parts"].get("fourier", ())
    places = [i + 1 for i, operation in enumerate(operations) if operation["kind"] == "attention"]
    if len(places) != count:
        return [100 * (i + 1) / count for i in range(count)]
    return [100 * place / len(operations) for place in places]


def details(models: Sequence[Json], looks: Looks) -> Markup:
    """Amplitude at the highest frequency along the depth; dashed for the tokens of a model with maps and tokens."""
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(5.2, 3.6)
        for model in models:
            points = model["parts"]["fourier"]
            depth = [100 * (i + 1) / len(points) for i in range(len(points))]
            for stream, dashes in zip(streams(model), ("-", (0, (3, 2))), strict=False):
                own = [i for i, point in enumerate(points) if point["stream"] == stream]
                highs = [points[i]["high"] for i in own]
                _line(axes, [depth[i] for i in own], highs, model["model"], looks, linestyle=dashes)
        axes.set_ylabel("log-amplitude at the highest\nfrequency, nats")
        _depth(axes)
        return svg(figure, "detail", "Amplitude at the highest frequency along the depth")


def streams(model: Json) -> list[str]:
    """Streams of a model: "map", "tokens" or both, in this order."""
    return sorted({point["stream"] for point in model["parts"]["fourier"]})


def changes(models: Sequence[Json], looks: Looks) -> Markup:
    """Mean change of the highest frequency by kind of operation, one mark per model."""
    found = {model["model"]: mean_changes(model) for model in models}
    kinds = [kind for kind in KINDS if any(kind in of_model for of_model in found.values())]
    with mpl.rc_context({**STYLE, "ytick.major.size": 0}):
        figure, axes = new_figure(5.2, 3.6)
        axes.axvline(0, color=INK, linewidth=1)
        for i, (model, of_model) in enumerate(found.items()):
            shift = 0.5 * ((i + 0.5) / len(found) - 0.5)
            for kind, change in of_model.items():
                looks.point(axes, change, kinds.index(kind) + shift, model, filled=True)
        axes.set_yticks(range(len(kinds)), [KINDS[kind] for kind in kinds])
        axes.set_ylim(len(kinds) - 0.5, -0.5)
        furthest = max(abs(change) for of_model in found.values() for change in of_model.values())
        axes.set_xlim(-1.15 * furthest, 1.15 * furthest)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel("blurs  ←  change by an operation, nats  →  sharpens")
        return svg(figure, "changes", "Mean change of the highest frequency by kind of operation")


def mean_changes(model: Json) -> dict[str, float]:
    """By kind of operation: mean change of the log-amplitude at the highest frequency."""
    of_kind: dict[str, list[float]] = {}
    for point in model["parts"]["fourier"]:
        if point["change"] is not None:
            of_kind.setdefault(point["kind"], []).append(point["change"])
    return {kind: sum(values) / len(values) for kind, values in of_kind.items()}


def survival(models: Sequence[Json], looks: Looks, number: int, label: str, factor: float, chance: float) -> Markup:
    """Accuracy under one disturbance, from none to strong.

    Args:
        models: with results on disturbances.
        looks: of the models.
        number: of the curve.
        label: of the levels.
        factor: from the levels to displayed ones.
        chance: chance accuracy, drawn as a dashed line.
    """
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(3.0, 2.8)
        for model in models:
            found = model["parts"]["robustness"]
            scores = [100 * score for score in (found["clean"], *found["curves"][number]["score"])]
            _line(axes, range(len(scores)), scores, model["model"], looks)
        axes.axhline(100 * chance, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate("chance", (0.01, 100 * chance), xycoords=("axes fraction", "data"), va="bottom", size=9)
        curve = models[0]["parts"]["robustness"]["curves"][number]
        levels = [f"{factor * level:g}" for level in curve["levels"]]
        axes.set_xticks(range(1 + len(levels)), ["none", *levels])
        axes.set(ylim=(0, 101), xlabel=label, ylabel="top-1, %")
        return svg(figure, f"survival-{number}", f"Accuracy under {curve['name']}")


def _line(axes: Any, xs: Sequence[float], ys: Sequence[float], model: str, looks: Looks, **style: Any) -> None:
    colour, marker = looks.colour[model], looks.marker[model]
    gaps = [np.nan if y is None else y for y in ys]
    axes.plot(xs, gaps, color=colour, marker=marker, markersize=5, linewidth=1.8, **style)


def _depth(axes: Any) -> None:
    axes.set(xlim=(0, 103), xlabel="depth, % of the operations")
    axes.xaxis.set_major_locator(MaxNLocator(5))
