"""The pages of `glocal analyze`, one function per kind of analysis.

A page has a finding in a sentence, captioned figures and a table, from the fields of a result of `glocal.analysis`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup

from glocal.files import printable
from glocal.formatting import percent
from glocal.report.analysis_figures import DEPTH, KINDS, Bar, bars, by_depth, heads, lines, matrix, over, pictures

MOST_PICTURES = 8
HARDLY = 0.02  # nats: 2 % of the amplitude


@dataclass(frozen=True)
class Panel:
    """A figure.

    Attributes:
        name: of its file.
        title: heading.
        text: caption.
        figure: SVG.
        wide: whether it spans the page.
    """

    name: str
    title: str
    text: str
    figure: Markup
    wide: bool = False


@dataclass(frozen=True)
class Page:
    """Contents of a page.

    Attributes:
        finding: in a sentence.
        question: answered by the page, for readers who do not know the papers.
        panels: the figures.
        head: of the table.
        rows: of the table.
        terms: (word, meaning) pairs.
    """

    finding: str
    question: str
    panels: Sequence[Panel]
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    terms: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Subject:
    """What was analysed.

    Attributes:
        kind: of the analysis.
        model: its name.
        weights: "trained weights", or "random weights".
        data: description of the images.
        command: command line.
        glocal: version.
        created: date and time.
        pictures: (K, H, W, 3) uint8, the first images after preprocessing.
        classes: names of the logits.
        versus: name of the second model, if any.
    """

    kind: str
    model: str
    weights: str
    data: str
    command: str
    glocal: str
    created: str
    pictures: np.ndarray
    classes: Sequence[str] = field(default_factory=tuple)
    versus: str | None = None


def _fourier(result: Any, subject: Subject, other: Any) -> Page:
    points = result.points
    changes = {
        kind: [p.high_change for p in points if p.kind == kind and p.high_change is not None] for kind in KINDS[:4]
    }
    said = [f"{_kind(kind)} {_effect(float(np.mean(found)))}" for kind, found in changes.items() if found]
    others = [(subject.versus or "", [p.high for p in other.points])] if other is not None else []
    finding = f"On average {', '.join(said)}." if said else "Amount of fine detail in the features by layer."
    panels = [
        Panel(
            "change", "Change of fine detail by operation",
            "Marks below the line blur the features, marks above it sharpen them.",
            by_depth("change", "Change of the highest frequency by each operation", points,
                     [p.high_change for p in points], "change of log-amplitude\nat the highest frequency, nats",
                     zero=True, line=False),
        )
    ] * bool(said) + [
        Panel(
            "high", "Fine detail by depth",
            "The lower, the smoother the features are, compared with their mean level.",
            by_depth("high", "Amplitude at the highest frequency by depth", points, [p.high for p in points],
                     "log-amplitude at the highest\nfrequency, nats", others=others),
        ),
        Panel(
            "spectrum", "All frequencies",
            "From coarse patterns on the left to the Nyquist frequency on the right; dark lines are early, "
            "bright ones late. A steeply falling line means smooth features.",
            lines("spectrum", "Log-amplitude over frequency, one line per depth",
                  [(p.name, p.frequency, p.amplitude) for p in points],
                  "frequency, in units of π radians per pixel of the map", "log-amplitude, nats", ramp=True),
        ),
        Panel(
            "variance", "Spread of the features over the image",
            "It falls where operations average, and grows where places become different.",
            by_depth("variance", "Variance of the features over the image by depth", points,
                     [p.variance for p in points], "variance over the image", log=True),
        ),
    ]  # fmt: skip
    definition = (
        "log |F| averaged over images, channels and all frequencies of a ring, minus its value at frequency 0"
        if result.definition == "rings"
        else "as in the notebook of Park and Kim 2022: log(|F| + 1e-6) along half the diagonal, minus its start"
    )
    return Page(
        finding,
        "Does the model blur or sharpen its features, and which operation does what? Park and Kim (2022) find that "
        "attention blurs and convolution sharpens.",
        panels,
        ("operation", "kind", "map", "highest frequency, π", "log-amplitude, nats", "change, nats", "variance"),
        [
            (p.name, p.kind, f"{p.size[0]}×{p.size[1]}", f"{p.frequency[-1]:.3f}", f"{p.high:.3f}",
             _signed(p.high_change), f"{p.variance:.3g}")
            for p in points
        ],
        (
            ("log-amplitude", definition + f" ({result.output} of each operation)"),
            ("change", "log-amplitude of the output minus that of the input; 0.7 nats are a factor of 2"),
        ),
    )  # fmt: skip


def _attention(result: Any, subject: Subject, other: Any) -> Page:
    points = result.points
    placed = [p for p in points if p.distance is not None]
    finding = f"{len(points)} attention layers; the positions of their tokens in the image are unknown."
    if placed:
        first, last = placed[0], placed[-1]
        finding = (
            f"The mean attention distance is {np.mean(first.distance):.0f} px in the first attention layer and "
            f"{np.mean(last.distance):.0f} px in the last; uniform attention would give "
            f"{last.uniform_distance:.0f} px there."
        )
    panels = []
    if placed:
        panels.append(
            Panel(
                "distance", "Attention distance",
                "Low dots are local heads, as in a convolution; dots at the dashed line attend "
                "uniformly.",
                heads("distance", "Mean attention distance by head and depth", [p.distance for p in points],
                      "mean distance, px of the image", level=[p.uniform_distance for p in points]),
            )
        )  # fmt: skip
    panels.append(
        Panel(
            "entropy", "Attention entropy",
            "1 is uniform over all keys, 0 a single key.",
            heads("entropy", "Entropy of the attention maps by head and depth",
                  [p.entropy / math.log(p.keys) for p in points], "entropy / log(number of keys)"),
        )
    )  # fmt: skip
    if any(p.bias_share is not None for p in points):
        panels.append(
            Panel(
                "bias", "Position bias",
                "Fraction of the logits' variance due to the position of a key, not its content: 1 is position "
                "alone.",
                heads("bias", "Fraction of the logits' variance from the position bias",
                      [p.bias_share for p in points], "fraction of the logits' variance"),
            )
        )  # fmt: skip
    shown = len(result.rollout) if result.rollout is not None else len(next(iter(result.focus.values()), ()))
    if shown:
        names = [*result.focus]
        names = names if len(names) <= 5 else [names[i] for i in np.linspace(0, len(names) - 1, 5).round().astype(int)]
        rows = []
        for i in range(shown):
            rolled = [result.rollout[i]] if result.rollout is not None else []
            rows.append(("", [subject.pictures[i], *(result.focus[name][i] for name in names), *rolled]))
        order = {p.name: i for i, p in enumerate(points, start=1)}
        titles = ["image", *(f"attention {order[name]}" for name in names)]
        titles += ["rollout"] * (result.rollout is not None)
        panels.append(
            Panel(
                "maps", "Attention maps",
                "Attention of the class token, or else of the central token, mean over heads. Rollout is the product "
                "of the maps of all layers.",
                pictures("maps", "Attention maps over the images", rows, titles, subject.pictures), wide=True,
            )
        )  # fmt: skip
    return Page(
        finding,
        "Is attention local, as a convolution, or does it span the whole image?",
        panels,
        ("attention", "heads", "queries × keys", "windows", "distance, px", "entropy, nats", "position bias",
         "error of the recomputed output"),
        [
            (p.name, str(p.heads), f"{p.queries} × {p.keys}", str(p.windows),
             "–" if p.distance is None else f"{np.mean(p.distance):.1f}", f"{np.mean(p.entropy):.2f}",
             "–" if p.bias_share is None else f"{np.mean(p.bias_share):.2f}", f"{p.error:.0e}")
            for p in points
        ],
        (
            ("distance", "pixels between the centres of a query and a key, weighted by the attention map"),
            ("windows", "number of separate attentions per image: windows or channels"),
            ("rollout", "product of the maps, each averaged over heads and with half an identity for the skip "
             "(Abnar and Zuidema 2020)"),
        ),
    )  # fmt: skip


def _receptive_field(result: Any, subject: Subject, other: Any) -> Page:
    points = result.points
    last = points[-1]
    finding = (
        f"At the last layer, 95 % of the gradient of the central unit is in {100 * last.area:.0f} % of the image, "
        f"with a radius of {last.radius:.0f} px."
    )
    label = subject.versus or ""
    if other is not None:
        finding += f" In {label} it is {100 * other.points[-1].area:.0f} % and {other.points[-1].radius:.0f} px."
    shown = _some(points, MOST_PICTURES)
    titles = [f"depth {points.index(p) + 1}" for p in shown]
    rows = [(subject.model if other is not None else "", [np.sqrt(p.field) for p in shown])]
    if other is not None:
        beside = _some(other.points, len(shown))
        rows.append((label, [np.sqrt(p.field) for p in beside]))
        if len(other.points) != len(points):
            titles = ["first", *("" for _ in titles[2:]), "last"]
    height, width = result.image_size
    panels = [
        Panel(
            "fields", "Effective receptive fields",
            f"Each square is the whole image ({width}×{height} px); bright pixels affect the central unit of the "
            "features. Brightness is the square root of the gradient.",
            pictures("fields", "Effective receptive fields by depth", rows, titles), wide=True,
        ),
        Panel(
            "area", "Area by depth",
            "Smallest part of the image with 95 % of the gradient; it grows gradually with convolutions, at once with "
            "global attention.",
            by_depth("area", "Area of the receptive field by depth", points, [100 * p.area for p in points],
                     "area, % of the image",
                     others=[(label, [100 * p.area for p in other.points])] if other is not None else ()),
        ),
        Panel(
            "radius", "Distance by depth",
            "Root mean square distance from the position of the unit.",
            by_depth("radius", "Radius of the receptive field by depth", points, [p.radius for p in points],
                     "root mean square distance, px",
                     others=[(label, [p.radius for p in other.points])] if other is not None else ()),
        ),
    ]  # fmt: skip
    return Page(
        finding,
        "How large is the effective receptive field of a unit?",
        panels,
        ("operation", "kind", "map", "area, %", "radius, px", "reach, px", "height / width"),
        [
            (p.name, p.kind, f"{p.size[0]}×{p.size[1]}", f"{100 * p.area:.1f}", f"{p.radius:.1f}",
             f"{p.reach[0]}×{p.reach[1]}", f"{p.elongation:.2f}")
            for p in points
        ],
        (
            ("receptive field",
              "size of the gradient of the features in the centre with respect to each pixel, averaged "
             "over images (Luo et al. 2016)"),
            ("reach", "bounding box of all non-zero gradients: the theoretical receptive field"),
        ),
    )  # fmt: skip


def _locality(result: Any, subject: Subject, other: Any) -> Page:
    groups = sorted(result.groups or result.ablations, key=lambda a: a.kept)
    worst = groups[0]
    finding = (
        f"Without {worst.name.replace('all ', 'its ')}, {100 * (1 - worst.kept):.0f} % of the predictions change: the "
        "most of any kind of operation."
    )
    scored = result.accuracy is not None
    kinds = [Bar(kind, kind) for kind in KINDS if any(p.kind == kind for p in result.contributions)]
    added = {p.name: p for p in result.contributions}
    name = "accuracy" if scored else "unchanged predictions"
    panels = [
        Panel(
            "groups", "Ablation by kind",
            "Predictions that change when all operations of a kind are ablated together.",
            bars("groups", "Changed predictions without a kind of operation", result.groups,
                 [100 * (1 - a.kept) for a in result.groups], "changed predictions, %"),
        ),
    ] * bool(result.groups) + [
        Panel(
            "single", "Ablation of single operations",
            "High marks are important operations.",
            by_depth("single", "Change of the logits without one operation", result.ablations,
                     [a.logit_change for a in result.ablations], "change of the logits\nrelative to their variation",
                     zero=True, line=False),
        ),
        Panel(
            "ratio", "Norm of the branches",
            "Above 1, the branch outweighs the skip; near 0, the operation hardly changes the features.",
            by_depth("ratio", "Norm of the branch over the norm of the skip", result.contributions,
                     [p.ratio for p in result.contributions], "norm of branch / norm of skip", zero=True, line=False),
        ),
        Panel(
            "share", "Contributions",
            "Mean fraction of the output that is due to the branch; the rest comes from the skip.",
            bars("share", "Contribution of the operations of a kind", kinds,
                 [100 * float(np.mean([p.share for p in result.contributions if p.kind == k.kind])) for k in kinds],
                 "fraction of the output, %"),
        ),
    ] * bool(result.contributions)  # fmt: skip
    replaced = "its mean over images" if result.way == "mean" else "zero"
    return Page(
        finding,
        "Which operations matter: local (convolution), global (attention), or couplings?",
        panels,
        ("ablated", "kind", "operations", "logits change", "unchanged predictions, %", "accuracy, %", "branch / skip",
         "contribution, %"),
        [
            (a.name, a.kind, str(a.operations), f"{a.logit_change:.3f}", f"{100 * a.kept:.1f}",
             "–" if a.accuracy is None else f"{100 * a.accuracy:.1f}",
             f"{added[a.name].ratio:.3f}" if a.name in added else "–",
             f"{100 * added[a.name].share:.1f}" if a.name in added else "–")
            for a in (*result.groups, *result.ablations)
        ],
        (
            ("ablated", f"the branch is replaced by {replaced}"),
            ("logits change", "norm of the change over the norm of the variation between images"),
            (name,
              f"{100 * result.accuracy:.1f} % with nothing ablated" if scored else "fraction with the same prediction"),
        ),
    )  # fmt: skip


def _cam(result: Any, subject: Subject, other: Any) -> Page:
    shown = min(len(subject.pictures), MOST_PICTURES, len(result.maps))
    peak = float(np.mean([(m >= 0.5).mean() for m in result.maps]))

    def called(i: int) -> str:
        label = int(result.classes[i])
        name = subject.classes[label] if label < len(subject.classes) else f"class {label}"
        return f"{printable(name)[:16]}\n{100 * result.probabilities[i]:.0f} %"

    rows = [
        ("image", [subject.pictures[i] for i in range(shown)]),
        ("evidence", [over(subject.pictures[i], result.maps[i]) for i in range(shown)]),
    ]
    return Page(
        f"The evidence for a prediction covers {100 * peak:.0f} % of the image on average (at least half of its "
        "peak).",
        "Which places of an image are evidence for the prediction?",
        [
            Panel("cam", "Evidence for the prediction",
              "Bright places are evidence for the predicted class, named above.",
                  pictures("cam", "Class activation maps", rows, [called(i) for i in range(shown)]), wide=True)
        ],
        ("image", "prediction", "probability, %", "area above half, %"),
        [
            (str(i + 1), called(i).split("\n")[0], f"{100 * result.probabilities[i]:.1f}",
             f"{100 * (result.maps[i] >= 0.5).mean():.0f}")
            for i in range(len(result.maps))
        ],
        (("Grad-CAM",
          f"features of “{result.layer}” ({result.size[0]}×{result.size[1]}) weighted by the mean gradient of "
          "the class (Selvaraju et al. 2017)"),),
    )  # fmt: skip


def _similarity(result: Any, subject: Subject, other: Any) -> Page:
    cka = result.cka
    if subject.versus:
        finding = f"The CKA of the last features is {cka[-1, -1]:.2f}; the maximum is {cka.max():.2f}."
        across = f"depth of {printable(subject.versus)}"
    else:
        steps = [cka[i, i + 1] for i in range(len(cka) - 1)] or [1.0]
        finding = (
            f"The CKA of the first and last features is {cka[0, -1]:.2f}; the largest change is after operation "
            f"{int(np.argmin(steps)) + 1} ({min(steps):.2f})."
        )
        across = DEPTH
    return Page(
        finding,
        "Which layers have similar features? Bright blocks are ranges of depth with little change.",
        [
            Panel("cka", "Similarity of features",
              "1 (bright) is equal up to rotation and scale, 0 (dark) unrelated.",
                  matrix("cka", "Linear CKA between points of the depth", cka, across,
                         f"depth of {printable(subject.model)}", "linear CKA"))
        ],
        ("depth", "operation", "kind", "CKA with the last"),
        [
            (str(i + 1), name, kind, f"{cka[i, -1]:.3f}")
            for i, (name, kind) in enumerate(zip(result.rows, result.row_kinds, strict=True))
        ],
        (("linear CKA",
          f"unbiased over minibatches of {result.images} images (Kornblith et al. 2019; Nguyen et al. 2021)"),),
    )  # fmt: skip


def _position(result: Any, subject: Subject, other: Any) -> Page:
    points, names = result.points, {"zeros": "zero padding", "reflect": "reflection", "circular": "wrapping around"}
    last = points[-1]
    said = ", ".join(
        f"{percent(max(0.0, last.r2[padding]), 0)} with {names.get(padding, padding)}" for padding in result.paddings
    )
    return Page(
        f"A linear probe of position on the last features explains {said} of the variance.",
        "Do the features encode position? A CNN can only learn it from zero padding, a Transformer from "
        "position embeddings.",
        [
            Panel("position", "Position information",
                  "1: exact row and column; 0: none. If only zero padding is high, it is the source.",
                  lines("position", "R squared of a linear probe of row and column by depth",
                        [(names.get(padding, padding), [*range(1, len(points) + 1)],
                          [max(-0.25, p.r2[padding]) for p in points]) for padding in result.paddings],
                        DEPTH, "cross-validated R²"))
        ],
        ("operation", "kind", "map", *(f"R², {names.get(padding, padding)}" for padding in result.paddings)),
        [
            (p.name, p.kind, f"{p.size[0]}×{p.size[1]}", *(f"{p.r2[padding]:.3f}" for padding in result.paddings))
            for p in points
        ],
        (
            ("R²", "fraction of the variance of row and column explained by a ridge probe on held-out images; "
             "images are randomly rolled first"),
            ("padding", "of the convolutions, changed after training, which may reduce the accuracy"),
        ),
    )  # fmt: skip


def _robustness(result: Any, subject: Subject, other: Any) -> Page:
    score = "accuracy" if result.labelled else "unchanged predictions"
    low, high = (next(c for c in result.curves if c.name.startswith(name)) for name in ("low", "high"))
    gap, doubt = np.mean(high.score) - np.mean(low.score), result.images**-0.5
    finding = "Low- and high-frequency noise have about the same effect."
    if abs(gap) > doubt:
        finding = f"{'High' if gap < 0 else 'Low'}-frequency noise hurts more."
    if result.shape is not None:
        gap = result.shape - result.texture
        cue = "neither more often" if abs(gap) < doubt else f"the {'shape' if gap > 0 else 'texture'} more often"
        finding += f" In cue conflicts between shape and texture, it follows {cue}."
    panels = [
        Panel(
            "noise", "Noise", "The model relies more on the frequencies of the line that falls first.",
            lines("noise", "Score against noise of low and high frequency",
                  [(c.name, c.levels, [100 * s for s in c.score]) for c in (low, high)],
                  "noise / std of the image", f"{score}, %", level=("undisturbed", 100 * result.clean), log=True),
        )
    ]  # fmt: skip
    for curve, text in (
        ("occlusion", "A flat line means that any part of the object suffices."),
        ("shuffled patches", "The remaining score does not depend on the arrangement of parts."),
    ):
        found = next(c for c in result.curves if c.name == curve)
        xs = found.levels if curve != "occlusion" else [100 * level for level in found.levels]
        unit = found.unit if curve != "occlusion" else "patches hidden, %"
        name = curve.split()[0]
        panels.append(
            Panel(
                name, curve.capitalize(), text,
                lines(name, f"Score under {curve}", [(curve, xs, [100 * s for s in found.score])], unit, f"{score}, %",
                      level=("undisturbed", 100 * result.clean), log=curve != "occlusion"),
            )
        )  # fmt: skip
    if result.shape is not None:
        cues = [Bar("shape", "convolution"), Bar("texture", "attention")]
        panels.append(
            Panel(
                "conflict", "Shape against texture",
                "Predictions on images with the shape of one class and the texture of another.",
                bars("conflict", "Predictions by shape and by texture", cues, [100 * result.shape, 100 *
                result.texture],
                     "predictions, % of the images"),
            )
        )  # fmt: skip
    rows = [
        (c.name, f"{level:g}", f"{100 * s:.1f}")
        for c in result.curves
        for level, s in zip(c.levels, c.score, strict=True)
    ]
    if result.shape is not None:
        rows += [("conflict: shape", "–", f"{100 * result.shape:.1f}"), ("conflict: texture", "–",
                  f"{100 * result.texture:.1f}")]  # fmt: skip
    return Page(
        finding,
        "How robust are the predictions, and which cues do they use?",
        panels,
        ("disturbance", "level", f"{score}, %"),
        [("none", "–", f"{100 * result.clean:.1f}"), *rows],
        (
            ("low, high frequency", "below a third and above two thirds of the Nyquist frequency"),
            ("conflict",
              f"{result.conflicts} images with the phase (shape) of one and the amplitudes (texture) of "
             "another class: fraction predicted as either"),
        ),
    )  # fmt: skip


def _features(result: Any, subject: Subject, other: Any) -> Page:
    streams = {layout: [p for p in result.points if p.layout == layout] for layout in ("map", "tokens")}
    streams = {layout: points for layout, points in streams.items() if points}
    called = {"map": "maps", "tokens": "tokens"}
    shown = min(2, len(subject.pictures))
    rows, under = [], []
    for i in range(shown):
        for layout, points in streams.items():
            chosen = _some(points, MOST_PICTURES - 1)
            rows.append((called[layout], [subject.pictures[i], *(p.strength[i] for p in chosen)]))
            under.append(subject.pictures[i])
    held = [
        f"{100 * _half(points[-1].strength):.0f} % of the places of its {called[of]}" for of, points in streams.items()
    ]
    finding = f"In the last features, half of the energy is in {' and '.join(held)}; uniform features would give 50 %."
    first = result.first
    return Page(
        finding,
        "What do the features look like? Edges and texture at first, whole objects later.",
        [
            Panel("first", "First-layer responses",
                  f"Single channels of “{printable(first.name)}” for the first image, the most varied ones.",
                  pictures("first", "First-layer responses", [("", [subject.pictures[0], *first.channels])],
                           ["image", *(f"channel {i + 1}" for i in range(len(first.channels)))]), wide=True),
            Panel("streams", "Features by depth",
                  "Root mean square over channels; depth grows from left to right."
                  "",
                  pictures("streams", "Strength of the features by depth", rows, ["image", *("" for _ in range(7))]),
                  wide=True),
        ],
        ("operation", "kind", "stream", "map"),
        [(p.name, p.kind, called[p.layout], f"{p.strength.shape[1]}×{p.strength.shape[2]}") for p in result.points],
    )  # fmt: skip


PAGES: Mapping[str, Callable[[Any, Subject, Any], Page]] = {
    "fourier": _fourier,
    "attention": _attention,
    "receptive-field": _receptive_field,
    "locality": _locality,
    "features": _features,
    "cam": _cam,
    "similarity": _similarity,
    "position": _position,
    "robustness": _robustness,
}


def _half(strength: np.ndarray) -> float:
    """Smallest fraction of the places with half of the energy, mean over images."""
    energy = np.sort(np.square(strength.reshape(len(strength), -1)), axis=1)[:, ::-1].cumsum(1)
    return float((energy < energy[:, -1:] / 2).mean())


def _kind(kind: str) -> str:
    return {"mlp": "the MLP"}.get(kind, kind)


def _effect(change: float) -> str:
    """A change of log-amplitude in words."""
    if abs(change) < HARDLY:
        return "hardly changes fine detail"
    return f"{'blurs' if change < 0 else 'sharpens'} ({_signed(change, 2)} nats)"


def _signed(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", "\u2212")


def _some(points: Sequence[Any], count: int) -> list[Any]:
    """Points evenly spaced over the depth, including the first and the last."""
    if len(points) <= count:
        return [*points]
    return [points[i] for i in np.linspace(0, len(points) - 1, count).round().astype(int)]
