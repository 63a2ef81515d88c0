"""How the trained models of a comparison look at its validation images: what `glocal.analysis` finds, made small.

Of each model one run is looked into: its first that has finished on the largest share of the training images. What is
found is kept beside the run's weights, part by part; a part that is there is not looked for again.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from glocal.analysis import attention, fourier, locality, receptive_field, robustness, to_json
from glocal.analysis.attention_maps import attention_calls
from glocal.analysis.robustness import DISTURBANCES
from glocal.analysis.watch import Progress
from glocal.comparison.execution import reason_of
from glocal.comparison.settings import Run, Settings
from glocal.comparison.store import Store
from glocal.data import DataSource, ImageError, ImageSet
from glocal.data.transforms import Normalize, resize_crop
from glocal.errors import GlocalError
from glocal.models.io import load_model
from glocal.schema import CompareExtras, CompareResults, ModelAnalysis
from glocal.training import ImageBatches
from glocal.training.loader import Batch

IMAGES = 256
"""Test images that answers are asked for: a share of them is known to 6 points either way (95 %)."""
INSIDE = 32
"""The first of these, whose features are looked at."""
SEED = 0
"""Of which images, of noise, patches and signs."""
DEPTHS = 3
"""Places along the depth whose receptive fields are shown."""
FIELD = 16
"""Side of a receptive field in results."""

Part = Callable[[nn.Module, Tensor, Tensor, Progress], Any]


class Observer(Protocol):
    """Is told what is looked into."""

    def say(self, text: str) -> None:
        """A note for the user."""

    def look(self, run: Run, share: float) -> None:
        """The run's model is looked into, and a share of that, from 0 to 1, is done."""


def analyze(runs: Sequence[Run], source: DataSource, settings: Settings, store: Store, observer: Observer) -> None:
    """Look into the models of runs and keep what is found; what fails is kept with its reason and loses nothing else.

    Args:
        runs: finished ones, whose models are in the store.
        source: the data of the comparison.
        settings: of the comparison.
        store: its folder.
        observer: is told of progress.
    """
    missing = [run for run in runs if _is_missing(store.analysis(run.id))]
    if not missing:
        return
    batch = _read(source.val, settings)
    device = settings.device if settings.device.startswith("cuda") else "cpu"  # MPS has no float64
    for run in missing:
        observer.look(run, 0.0)
        entry = look_into(store.runs / run.id, run, batch, device, store.analysis(run.id), partial(observer.look, run))
        store.save_analysis(run.id, entry)
        observer.look(run, 1.0)
        failed = [f"{part} failed ({reason})" for part, reason in entry["failed"].items()]
        observer.say(", ".join((f"{run.id}: looked into for {entry['seconds']:.1f} s", *failed)))


def look_into(
    folder: Path,
    run: Run,
    batch: Batch,
    device: str,
    before: ModelAnalysis | None,
    progress: Callable[[float], None],
) -> ModelAnalysis:
    """What there is to say of one trained model.

    Args:
        folder: of the run.
        run: which it is.
        batch: (B, 3, S, S) uint8 images and their labels.
        device: to look on.
        before: an entry whose parts are taken over.
        progress: told which share is done.

    Returns:
        The model's entry in the results: ``parts`` by name, ``without`` with the reason why a part does not apply to
        this model, ``failed`` with the reason why a part is not there yet.
    """
    start = perf_counter()
    parts: dict[str, Any] = dict(before["parts"]) if before else {}
    without: dict[str, str] = dict(before["without"]) if before else {}
    failed: dict[str, str] = {}
    missing = [name for name in PARTS if name not in parts and name not in without]
    try:
        saved = load_model(folder, "classification")
        model = saved.model.to(device)
        images, labels = Normalize(saved.mean, saved.std)(batch.inputs).to(device), batch.labels.to(device)
    except Exception as error:
        failed, missing = dict.fromkeys(missing, reason_of(error)), []
    for number, name in enumerate(missing):

        def tell(done: int, total: int, number: int = number) -> None:
            progress((number + done / total) / len(missing))

        try:
            parts[name] = to_json(PARTS[name](model, images, labels, tell))
        except GlocalError as error:
            without[name] = str(error)
        except Exception as error:  # whatever goes wrong in one part of one model, the others go on
            failed[name] = reason_of(error)
    seconds = (before["seconds"] if before else 0.0) + perf_counter() - start
    return {
        "model": run.model, "run": run.id, "seconds": seconds, "parts": parts, "without": without, "failed": failed
    }  # fmt: skip


def describe(runs: Sequence[Run], source: DataSource, store: Store) -> CompareExtras:
    """``analysis`` of the results: what was found of these runs; nothing where none was looked into."""
    models = [entry for run in runs if (entry := store.analysis(run.id)) is not None]
    if not models:
        return {}
    rows = _chosen(source.val)
    shown = [("none", 0.0), *((disturbance.name, _shown_level(disturbance.levels)) for disturbance in DISTURBANCES)]
    return {
        "analysis": {
            "images": len(rows),
            "inside": min(INSIDE, len(rows)),
            "seed": SEED,
            "example": source.val.paths[rows[0]],
            "disturbed": [{"name": n, "level": level, "picture": f"disturbed: {n}"} for n, level in shown],
            "models": models,
        }
    }


def pictures_of_disturbances(results: CompareResults, data: DataSource) -> dict[str, Image.Image]:
    """The example that ``analysis`` of the results names, under each disturbance, by key; none if it went bad."""
    analysis, settings = results["analysis"], results["settings"]
    try:
        image = data.val.image(data.val.paths.index(analysis["example"]))
    except ImageError:
        return {}
    pixels = resize_crop(image, settings["image_size"], settings["recipe"]["crop_pct"])
    plain = torch.from_numpy(pixels / np.float32(255)).permute(2, 0, 1)[None]
    apply = {disturbance.name: disturbance.apply for disturbance in DISTURBANCES}
    drawn = {}
    for one in analysis["disturbed"]:
        made, generator = plain, torch.Generator().manual_seed(analysis["seed"])
        if one["name"] in apply:
            made = apply[one["name"]](plain, one["level"], generator=generator)
        drawn[one["picture"]] = Image.fromarray((255 * made[0].permute(1, 2, 0).clamp(0, 1)).byte().numpy())
    return drawn


def _is_missing(entry: ModelAnalysis | None) -> bool:
    return entry is None or any(name not in entry["parts"] and name not in entry["without"] for name in PARTS)


def _chosen(images: ImageSet) -> np.ndarray:
    """The same for all models, in an order by chance: sets are often sorted by class."""
    return np.random.default_rng(SEED).permutation(len(images))[:IMAGES]


def _read(images: ImageSet, settings: Settings) -> Batch:
    """Those that went bad since they were checked are left out."""
    rows = _chosen(images)
    batches = ImageBatches(images.subset(rows), settings.image_size, crop_pct=settings.recipe.data.crop_pct)
    return batches.read(np.arange(len(rows)))[0]


def _shown_level(levels: Sequence[float]) -> float:
    """The second strongest."""
    return levels[-2]


# The parts.


def _locality(model: nn.Module, images: Tensor, labels: Tensor, progress: Progress) -> Any:
    """What is lost without all operations of a kind."""
    return [
        {
            "name": group.name,
            "kind": group.kind,
            "operations": group.operations,
            "changed": 1 - group.kept,
            "accuracy": group.accuracy,
        }
        for group in locality(model, images, labels, each=False, progress=progress).groups
    ]


def _receptive_field(model: nn.Module, images: Tensor, labels: Tensor, progress: Progress) -> Any:
    """Receptive fields at a few depths."""
    found = receptive_field(model, images[:INSIDE], most=DEPTHS, seed=SEED, progress=progress).points
    return [
        {"name": point.name, "depth": (i + 1) / len(found), "area": point.area, "field": _small(point.field)}
        for i, point in enumerate(found)
    ]


def _small(field: np.ndarray) -> list[list[float]]:
    """At most `FIELD` rows and columns of shares of the largest, for a picture."""
    pooled = torch.nn.functional.adaptive_avg_pool2d(
        torch.from_numpy(field)[None], (min(FIELD, field.shape[0]), min(FIELD, field.shape[1]))
    )[0]
    return (pooled / pooled.max().clamp(min=1e-30)).numpy().round(3).tolist()


def _attention(model: nn.Module, images: Tensor, labels: Tensor, progress: Progress) -> Any:
    """How far each attention looks, where it is known where its tokens lie; [] for a model without attention."""
    if not attention_calls(model, images[:1]):
        return []
    points = attention(model, images[:INSIDE], shown=1, batch_size=4, progress=progress).points
    return [
        {"name": p.name, "distance": float(np.mean(p.distance)), "everywhere": p.uniform_distance}
        for p in points
        if p.distance is not None
    ]


def _fourier(model: nn.Module, images: Tensor, labels: Tensor, progress: Progress) -> Any:
    """Amplitude at the highest frequency along the depth, and how operations change it."""
    return [
        {"name": p.name, "kind": p.kind, "stream": p.layout, "high": p.high, "change": p.high_change}
        for p in fourier(model, images[:INSIDE], progress=progress).points
    ]


def _robustness(model: nn.Module, images: Tensor, labels: Tensor, progress: Progress) -> Any:
    """Accuracy under disturbances."""
    return robustness(model, images, labels, seed=SEED, progress=progress)


PARTS: Mapping[str, Part] = {
    "locality": _locality,
    "receptive_field": _receptive_field,
    "attention": _attention,
    "fourier": _fourier,
    "robustness": _robustness,
}
"""By name; in this order they are looked for."""
