"""Results of `glocal compare --analyze`, as captioned panels.

Differences within the noise of the images are reported as none.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image

from glocal.formatting import listed
from glocal.report.figures import Looks
from glocal.report.insides_figures import (
    ablations,
    changes,
    details,
    distances,
    heat,
    mean_changes,
    streams,
    survival,
)
from glocal.report.thumbnails import thumbnail

Json = Mapping[str, Any]
Z = 1.96  # of a 95 % interval
HARDLY = 0.02  # nats: 2 % of the amplitude
FEW = 3  # models with numbers in the sentence; for more they are in the figure
ALIKE = 0.1  # relative to uniform attention: closer distances count as equal
NAMES = {"convolution": "convolution", "attention": "attention", "mlp": "the MLP"}
PARTS = {
    "locality": "ablation",
    "receptive_field": "receptive field",
    "attention": "attention distance",
    "fourier": "fine detail",
    "robustness": "robustness",
}


class DisturbanceText(NamedTuple):
    """Texts of a disturbance.

    Attributes:
        title: of its figure.
        label: of its levels.
        factor: from its levels to displayed ones.
        means: caption.
        words: a level in a sentence.
    """

    title: str
    label: str
    factor: float
    means: str
    words: Callable[[float], str]


def _as_strong(level: float) -> str:
    return "of the image's std" if level == 1 else f"of {level:g} times the image's std"


NOISE = "noise / std of the image"
DISTURBED = {
    "low-frequency noise": DisturbanceText(
        "Low-frequency noise", NOISE, 1, "Coarse noise covers shapes and shading.",
        lambda level: f"low-frequency noise {_as_strong(level)}",
    ),
    "high-frequency noise": DisturbanceText(
        "High-frequency noise", NOISE, 1, "Fine noise covers edges and texture.",
        lambda level: f"high-frequency noise {_as_strong(level)}",
    ),
    "occlusion": DisturbanceText(
        "Masked patches", "masked, % of the image", 100, "A flat line: any part of the object suffices.",
        lambda level: f"{100 * level:.0f} % of the image masked",
    ),
    "shuffled patches": DisturbanceText(
        "Shuffled patches", "patches along a side", 1, "A flat line: the arrangement of parts does not matter.",
        lambda level: f"{level:g} × {level:g} patches shuffled",
    ),
}  # fmt: skip


def insides(
    results: Json, rows: Sequence[Json], looks: Looks, pictures: Mapping[str, Image.Image]
) -> dict[str, Any] | None:
    """Context of the template; None if no model was analyzed.

    Args:
        results: of the comparison.
        rows: of the summary, best first.
        looks: of the models.
        pictures: the example under each disturbance, by the keys in the results.
    """
    analysis = results.get("analysis")
    if not analysis:
        return None
    by_model = {entry["model"]: entry for entry in analysis["models"]}
    models = [by_model[row["model"]] for row in rows if row["model"] in by_model]
    having = {part: [model for model in models if model["parts"].get(part)] for part in PARTS}
    images = analysis["images"]
    return {
        "images": images,
        "inside": analysis["inside"],
        "seconds": sum(model["seconds"] for model in models),
        "lead": _lead(models, results["verdict"]["most_accurate"], analysis),
        "panels": [
            panel
            for part, make in _PANELS.items()
            if having[part] and (panel := make(having[part], models, looks, images))
        ],
        "fields": _fields(having["receptive_field"]),
        "survival": _survival(having["robustness"], analysis, looks, pictures, len(results["data"]["classes"])),
        "table": _table(models, analysis),
        "details": details(having["fourier"], looks) if having["fourier"] else None,
        "two_streams": [model["model"] for model in having["fourier"] if len(streams(model)) > 1],
        "left_out": [
            (model["model"], PARTS[part], reason)
            for model in models
            for part, reason in (*model["without"].items(), *model["failed"].items())
        ],
    }


def _lead(models: Sequence[Json], best: str, analysis: Json) -> str:
    """The main findings on the most accurate model, compared with the others."""
    one = next((model for model in models if model["model"] == best), None)
    if one is None:
        return ""
    said = []
    if found := _leaning(one, analysis["images"]):
        said.append(f"depends on {found.kind}")
    sees = {model["model"]: _sees(model) for model in models if model["parts"].get("receptive_field")}
    if best in sees:
        said.append(f"has a receptive field of {_beside(sees, best, ' %')} of the image at its last layer")
    losses = {
        name: {m["model"]: _loss(m, name, analysis)[0] for m in models if m["parts"].get("robustness")}
        for name in DISTURBED
    }
    if best in losses["occlusion"]:
        name = max(losses, key=lambda name: abs(losses[name][best] - sum(losses[name].values()) / len(losses[name])))
        words = DISTURBED[name].words(_level(name, analysis))
        said.append(f"loses {_beside(losses[name], best)} points with {words}")
    return f"{best}, the most accurate, {listed(said)}." if said else ""


def _beside(values: Mapping[str, float], one: str, unit: str = "") -> str:
    others = [100 * value for name, value in values.items() if name != one]
    own = f"{100 * values[one]:.0f}{unit}"
    if not others:
        return own
    low, high = f"{min(others):.0f}", f"{max(others):.0f}"
    return f"{own} (the other{'s' if len(others) > 1 else ''} {low if low == high else f'{low} to {high}'}{unit})"


class Leaning(NamedTuple):
    """Whether predictions depend on convolution or attention, and how many change without each."""

    kind: str
    shares: str = ""


def _leaning(model: Json, images: int) -> Leaning | None:
    changed = {group["kind"]: group["changed"] for group in model["parts"].get("locality") or ()}
    local, far = changed.get("convolution"), changed.get("attention")
    if local is None or far is None:
        alone = "convolution alone" if far is None else "attention alone"
        return None if local is None and far is None else Leaning(alone)
    shares = f" ({100 * local:.0f} and {100 * far:.0f} %)"
    if _same(local, far, images):
        return Leaning("convolution and attention about equally", shares)
    return Leaning("convolution more than attention" if local > far else "attention more than convolution", shares)


def _same(one: float, other: float, images: int) -> bool:
    """Whether two fractions of the images do not differ significantly."""
    return abs(one - other) <= Z * ((one * (1 - one) + other * (1 - other)) / images) ** 0.5


def _rests_on(having: Sequence[Json], models: Sequence[Json], looks: Looks, images: int) -> dict[str, Any]:
    sorts: dict[str, dict[str, str]] = {}
    for model in having:
        if found := _leaning(model, images):
            sorts.setdefault(found.kind, {})[model["model"]] = found.shares
    said = "; ".join(
        f"{kind}: {listed([name + (shares if len(names) <= FEW else '') for name, shares in names.items()])}"
        for kind, names in sorts.items()
    )
    return {
        "title": "Local or global?",
        "means": "All blocks of a kind are ablated at once: the longer the bar, the more predictions change. "
        "Convolution is local, attention spans all positions in its window, an MLP mixes none. Operations inside a "
        "block belong to it, such as CvT's convolutions to its attention; stems and patch embeddings are not ablated.",
        "found": f"Predictions depend on {said}." if said else "",
        "figure": ablations(having, looks),
    }


def _far(having: Sequence[Json], models: Sequence[Json], looks: Looks, images: int) -> dict[str, Any]:
    level = max(point["everywhere"] for model in having for point in model["parts"]["attention"])
    everywhere, said = [], []
    for model in having:
        far = [point["distance"] for point in model["parts"]["attention"]]
        if min(far) >= (1 - ALIKE) * level:
            everywhere.append(model["model"])
        else:
            said.append(f"{model['model']}: {min(far):.1f} to {max(far):.1f} px")
    if everywhere:
        said.insert(0, f"{listed(everywhere)}: about the distance of uniform attention")
    without = [model["model"] for model in models if model["parts"].get("attention") == []]
    rest = f"; no spatial attention in {listed(without)}" if without else ""
    return {
        "title": "Attention distance",
        "means": "Each mark is the mean attention distance of a layer. Low marks are local, as a "
        "convolution; the dashed line is uniform attention.",
        "found": f"{'; '.join(said)}{rest}.",
        "figure": distances(having, looks),
    }


def _detail(having: Sequence[Json], models: Sequence[Json], looks: Looks, images: int) -> dict[str, Any] | None:
    of_kind: dict[str, list[float]] = {}
    for model in having:
        for kind, change in mean_changes(model).items():
            of_kind.setdefault(kind, []).append(change)
    if not of_kind:
        return None
    said = [f"{name} {_effect(of_kind[kind])}" for kind, name in NAMES.items() if kind in of_kind]
    return {
        "title": "Fine detail",
        "means": "Change of the highest frequency of the features by a block, relative to their mean level: "
        "blocks left of the line blur, blocks right of it sharpen. Park and Kim (2022) found that attention blurs and "
        "convolution sharpens.",
        "found": f"Here {listed(said)}." if said else "",
        "figure": changes(having, looks),
    }


def _effect(changes: Sequence[float]) -> str:
    """Effect of a kind of operation on fine detail, from the changes in nats of each model."""
    blurs, sharpens = sum(change < -HARDLY for change in changes), sum(change > HARDLY for change in changes)
    of = f"of {len(changes)} model{'s' if len(changes) > 1 else ''}"
    if 2 * max(blurs, sharpens) <= len(changes):
        return "has no consistent effect"
    return f"blurs in {blurs} {of}" if blurs > sharpens else f"sharpens in {sharpens} {of}"


_PANELS = {"locality": _rests_on, "attention": _far, "fourier": _detail}


def _fields(having: Sequence[Json]) -> dict[str, Any] | None:
    """Receptive fields as pictures, one row per model."""
    if not having:
        return None
    points = having[0]["parts"]["receptive_field"]
    sees = {model["model"]: _sees(model) for model in having}
    order = sorted(sees, key=lambda name: sees[name])
    found = f"At the last layer it is {100 * sees[order[0]]:.0f} % of the image in {order[0]}"
    if len(order) > 1:
        found += f", the smallest, and {100 * sees[order[-1]]:.0f} % in {order[-1]}, the largest"
    return {
        "means": "Gradient of the central unit with respect to the image. The coloured part of the image "
        "contains 95 % of it; the number is its area.",
        "found": f"{found}.",
        "heads": [
            "last layer" if point["depth"] == 1 else f"{100 * point['depth']:.0f} % of depth" for point in points
        ],
        "rows": [
            (
                model["model"],
                [(thumbnail(heat(p["field"]))[0], p["area"]) for p in model["parts"]["receptive_field"]],
            )
            for model in having
        ],
    }


def _sees(model: Json) -> float:
    area: float = model["parts"]["receptive_field"][-1]["area"]
    return area


def _survival(
    having: Sequence[Json], analysis: Json, looks: Looks, pictures: Mapping[str, Image.Image], num_classes: int
) -> list[dict[str, Any]]:
    """One panel per disturbance, with an example."""
    keys = {one["name"]: one["picture"] for one in analysis["disturbed"]}
    panels = []
    for number, name in enumerate(DISTURBED if having else ()):
        texts = DISTURBED[name]
        shown = [pictures[keys[of]] for of in ("none", name) if keys[of] in pictures]
        panels.append(
            {
                "title": texts.title,
                "means": texts.means,
                "found": _survives(having, name, analysis),
                "figure": survival(having, looks, number, texts.label, texts.factor, 1 / num_classes),
                "images": [thumbnail(image) for image in shown] if len(shown) == 2 else [],
            }
        )
    return panels


def _survives(having: Sequence[Json], name: str, analysis: Json) -> str:
    losses = sorted((*_loss(model, name, analysis), model["model"]) for model in having)
    (least, of_least, first), (most, of_most, last) = losses[0], losses[-1]
    words = DISTURBED[name].words(_level(name, analysis))
    if len(losses) == 1:
        return f"With {words} {first} loses {100 * least:.0f} points."
    if most - least <= Z * ((of_least + of_most) / analysis["images"]) ** 0.5:
        return f"With {words} all lose about the same: {100 * least:.0f} to {100 * most:.0f} points."
    return f"With {words} {first} loses least ({100 * least:.0f} points), {last} most ({100 * most:.0f})."


def _loss(model: Json, name: str, analysis: Json) -> tuple[float, float]:
    """Accuracy lost under the shown level of a disturbance, and an upper bound of its variance per image."""
    clean, disturbed = model["parts"]["robustness"]["clean"], _score(model, name, analysis)
    return clean - disturbed, clean * (1 - clean) + disturbed * (1 - disturbed)


def _score(model: Json, name: str, analysis: Json) -> float:
    (curve,) = (curve for curve in model["parts"]["robustness"]["curves"] if curve["name"] == name)
    score: float = curve["score"][curve["levels"].index(_level(name, analysis))]
    return score


def _level(name: str, analysis: Json) -> float:
    """Level of the example."""
    return next(one["level"] for one in analysis["disturbed"] if one["name"] == name)


def _table(models: Sequence[Json], analysis: Json) -> dict[str, Any]:
    """All numbers, one row per model."""
    kinds = ("convolution", "attention", "mlp")
    heads = ["model", *(f"{name} blocks, predictions changed %" for name in ("convolution", "attention", "MLP"))]
    heads += ["receptive field, %", "attention distance, px", "clean top-1, %"]
    heads += [f"{texts.title.lower()}, %" for texts in DISTURBED.values()]
    heads.append("seconds")
    rows = []
    for model in models:
        parts = model["parts"]
        groups = {group["kind"]: group for group in parts.get("locality") or ()}
        cells = [
            f"{groups[kind]['operations']}, {100 * groups[kind]['changed']:.0f}" if kind in groups else "–"
            for kind in kinds
        ]
        cells.append(f"{100 * _sees(model):.0f}" if parts.get("receptive_field") else "–")
        far = [point["distance"] for point in parts.get("attention") or ()]
        cells.append(f"{min(far):.1f}–{max(far):.1f}" if far else "–")
        found = parts.get("robustness")
        cells.append(f"{100 * found['clean']:.1f}" if found else "–")
        cells += [f"{100 * _score(model, name, analysis):.1f}" if found else "–" for name in DISTURBED]
        cells.append(f"{model['seconds']:.1f}")
        rows.append((model["model"], cells))
    return {"heads": heads, "rows": rows}
