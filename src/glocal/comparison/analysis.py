"""Analysis of the trained models of a comparison: compact results of `glocal.analysis` on validation images.

One run per model is analyzed: the first finished seed on the largest fraction of the training set. Results are saved in
the run's folder, part by part; finished parts are not repeated.
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
from glocal.analysis.watch import OnProgress
from glocal.comparison.execution import reason_of
from glocal.comparison.settings import ComparisonSettings, Run
from glocal.comparison.store import Store
from glocal.data import DataSource, ImageError, ImageSet
from glocal.data.transforms import Normalize, resize_crop
from glocal.errors import GlocalError
from glocal.files import printable
from glocal.models.io import load_model
from glocal.schema import CompareExtras, CompareResults, ModelAnalysis
from glocal.training import ImageBatches
from glocal.training.loader import Batch

IMAGES = 256
"""Number of validation images for predictions: the 95 % margin of a fraction of them is about 6 points."""
INSIDE = 32
"""Number of these for the analysis of features, the first ones."""
SEED = 0
"""For the choice of images, noise, patches and signs."""
DEPTHS = 3
"""Number of depths with receptive fields."""
FIELD = 16
"""Side of a receptive field in results."""

Part = Callable[[nn.Module, Tensor, Tensor, OnProgress], Any]


class AnalysisObserver(Protocol):
    """Receives the progress of the analysis."""

    def say(self, text: str) -> None:
        """A note for the user."""

    def look(self, run: Run, share: float) -> None:
        """Progress of the analysis of the run's model, from 0 to 1."""


def analyze(
    runs: Sequence[Run], source: DataSource, settings: ComparisonSettings, store: Store, observer: AnalysisObserver
) -> None:
    """Analyze the models of runs and save the results; failures are saved with their reason and do not stop the rest.

    Args:
        runs: finished runs in the store.
        source: the data of the comparison.
        settings: of the comparison.
        store: its folder.
        observer: receives progress.
    """
    missing = [run for run in runs if _is_missing(store.analysis(run.id))]
    for run_id, reason in store.damaged_analyses.items():
        observer.say(f"The analysis of {run_id} is damaged ({printable(reason)}): it is repeated.")
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
        observer.say(", ".join((f"{run.id}: analyzed in {entry['seconds']:.1f} s", *failed)))


def look_into(
    folder: Path,
    run: Run,
    batch: Batch,
    device: str,
    before: ModelAnalysis | None,
    progress: Callable[[float], None],
) -> ModelAnalysis:
    """Analyze one trained model.

    Args:
        folder: of the run.
        run: the run.
        batch: (B, 3, S, S) uint8 images and their labels.
        device: of torch.
        before: an earlier entry, whose parts are kept.
        progress: called with the fraction done.

    Returns:
        The model's entry in the results: ``parts`` by name, ``without`` with the reason why a part does not apply to
        this model, ``failed`` with the reason why a part failed.
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
        except Exception as error:  # a failed part does not stop the others
            failed[name] = reason_of(error)
    seconds = (before["seconds"] if before else 0.0) + perf_counter() - start
    return {
        "model": run.model, "run": run.id, "seconds": seconds, "parts": parts, "without": without, "failed": failed
    }  # fmt: skip


def describe(runs: Sequence[Run], source: DataSource, store: Store) -> CompareExtras:
    """``analysis`` of the results for these runs; empty if none was analyzed."""
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
    """The example of ``analysis`` in the results under each disturbance, by key; empty if it has become unreadable."""
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
    """Indices of the images, the same for all models, in random order: data sets are often sorted by class."""
    return np.random.default_rng(SEED).permutation(len(images))[:IMAGES]


def _read(images: ImageSet, settings: ComparisonSettings) -> Batch:
    """The images, without those that have become unreadable since the check."""
    rows = _chosen(images)
    batches = ImageBatches(images.subset(rows), settings.image_size, crop_pct=settings.recipe.data.crop_pct)
    return batches.read(np.arange(len(rows)))[0]


def _shown_level(levels: Sequence[float]) -> float:
    """The second strongest."""
    return levels[-2]


# The parts.


def _locality(model: nn.Module, images: Tensor, labels: Tensor, progress: OnProgress) -> Any:
    """Ablation of all operations of a kind."""
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


def _receptive_field(model: nn.Module, images: Tensor, labels: Tensor, progress: OnProgress) -> Any:
    """Receptive fields at a few depths."""
    found = receptive_field(model, images[:INSIDE], most=DEPTHS, seed=SEED, progress=progress).points
    return [
        {"name": point.name, "depth": (i + 1) / len(found), "area": point.area, "field": _small(point.field)}
        for i, point in enumerate(found)
    ]


def _small(field: np.ndarray) -> list[list[float]]:
    """At most `FIELD` rows and columns, relative to the largest value, for a picture."""
    pooled = torch.nn.functional.adaptive_avg_pool2d(
        torch.from_numpy(field)[None], (min(FIELD, field.shape[0]), min(FIELD, field.shape[1]))
    )[0]
    return (pooled / pooled.max().clamp(min=1e-30)).numpy().round(3).tolist()


def _attention(model: nn.Module, images: Tensor, labels: Tensor, progress: OnProgress) -> Any:
    """Attention distance of each layer with known token positions; [] for a model without attention."""
    if not attention_calls(model, images[:1]):
        return []
    points = attention(model, images[:INSIDE], shown=1, batch_size=4, progress=progress).points
    return [
        {"name": p.name, "distance": float(np.mean(p.distance)), "everywhere": p.uniform_distance}
        for p in points
        if p.distance is not None
    ]


def _fourier(model: nn.Module, images: Tensor, labels: Tensor, progress: OnProgress) -> Any:
    """Amplitude at the highest frequency along the depth, and how operations change it."""
    return [
        {"name": p.name, "kind": p.kind, "stream": p.layout, "high": p.high, "change": p.high_change}
        for p in fourier(model, images[:INSIDE], progress=progress).points
    ]


def _robustness(model: nn.Module, images: Tensor, labels: Tensor, progress: OnProgress) -> Any:
    """Accuracy under disturbances."""
    return robustness(model, images, labels, seed=SEED, progress=progress)


PARTS: Mapping[str, Part] = {
    "locality": _locality,
    "receptive_field": _receptive_field,
    "attention": _attention,
    "fourier": _fourier,
    "robustness": _robustness,
}
"""By name, in the order of the analysis."""
