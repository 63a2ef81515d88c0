"""The chosen models on ``DATA/test``: images that chose neither weights nor a model.

    OUT/runs/ID/test.json    predictions of a run for the test images, digests of its model and of the images

The file is written atomically; one of another model or other images is replaced.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glocal.comparison.settings import Run
from glocal.comparison.statistics import Answers, score_interval
from glocal.data import ImageSet
from glocal.errors import GlocalError
from glocal.files import atomic_write_text, sha256
from glocal.formatting import percent
from glocal.metrics.classification import Outcomes
from glocal.models.io import find_model, load_model
from glocal.schema import FinalTest, FinalTestRow
from glocal.tasks import ClassificationTask
from glocal.training.loader import evaluation_loader

FILE, SCHEMA = "test.json", "glocal.compare.test/1"


class Predictions(NamedTuple):
    """Of a run, for the test images.

    Attributes:
        predicted: (N,) int64 classes.
        nll: mean negative log-likelihood of the true classes, in nats; NaN if it is not finite.
    """

    predicted: np.ndarray
    nll: float


def run_final_test(
    models: Sequence[str],
    runs: Sequence[Run],
    images: ImageSet,
    folder: Path,
    device: str,
    say: Callable[[str], None] = lambda _: None,
) -> FinalTest:
    """Evaluate models on the test images, each with all its seeds; predictions that are kept are not repeated.

    Args:
        models: their names, the chosen one first.
        runs: finished runs of these models, on one fraction of the training set.
        images: the test images; their classes are those of the models.
        folder: ``OUT/runs``.
        device: of torch.
        say: is given a note before images are looked at.

    Raises:
        GlocalError: if an image has become unreadable.
        CheckpointError: if the model of a run is missing or damaged.
    """
    rows: list[FinalTestRow] = []
    for model in models:
        found = [predictions_of(folder / run.id, images, device, say) for run in runs if run.model == model]
        score = score_interval(Answers(np.stack([one.predicted == images.labels for one in found])))
        nll = float(np.mean([one.nll for one in found]))
        rows.append(
            {
                "model": model,
                "seeds": len(found),
                "top1_mean": score.mean,
                "top1_ci": [score.low, score.high],
                "nll_mean": nll if math.isfinite(nll) else None,
            }
        )
    return {"images": len(images), "models": rows}


def predictions_of(run: Path, images: ImageSet, device: str, say: Callable[[str], None]) -> Predictions:
    """The predictions of a run for the test images: those that are kept, or new ones.

    Args:
        run: its folder.
        images: the test images.
        device: of torch.
        say: see `run_final_test`.
    """
    digests = {"model": sha256(find_model(run)), "images": digest_of(images)}
    kept = _kept(run / FILE, digests, len(images))
    if kept is not None:
        return kept
    say(f"{run.name}: evaluating on the {len(images):,} test images ...")
    outcomes = _evaluate(run, images, device)
    nll = float(outcomes.nll.mean())
    content = {
        "schema": SCHEMA,
        **digests,
        "predicted": outcomes.predicted.tolist(),
        "nll": nll if math.isfinite(nll) else None,
    }
    atomic_write_text(run / FILE, json.dumps(content, allow_nan=False))
    return Predictions(outcomes.predicted, nll)


def digest_of(images: ImageSet) -> str:
    """SHA-256 over classes, paths and labels; the plan of a comparison has that of the contents."""
    named = json.dumps([images.classes, images.paths, images.labels.tolist()])
    return hashlib.sha256(named.encode()).hexdigest()


def final_test_in_words(test: FinalTest, name: str) -> str:
    """A sentence for the verdict.

    Args:
        test: from `run_final_test`.
        name: of the metric.
    """
    chosen, *others = (
        f"{row['model']}{{}} reaches {percent(row['top1_mean'])} {name} "
        f"({100 * row['top1_ci'][0]:.1f} to {100 * row['top1_ci'][1]:.1f})"
        for row in test["models"]
    )
    texts = [chosen.format(""), *(other.format(", the most accurate on the validation images,") for other in others)]
    return f" On the {test['images']:,} test images, which chose nothing, {' and '.join(texts)}."


def _kept(file: Path, digests: dict[str, str], count: int) -> Predictions | None:
    """The predictions in a file, if they are of this model and of these images."""
    try:
        kept: dict[str, Any] = json.loads(file.read_text())
        if kept["schema"] != SCHEMA or any(kept[name] != digest for name, digest in digests.items()):
            return None
        predicted = np.array(kept["predicted"], dtype=np.int64)
        nll = math.nan if kept["nll"] is None else float(kept["nll"])
    except (OSError, ValueError, KeyError, TypeError):  # none, or damaged
        return None
    return Predictions(predicted, nll) if predicted.shape == (count,) else None


def _evaluate(run: Path, images: ImageSet, device: str) -> Outcomes:
    """Outcomes of the saved model of a run, at its size and crop."""
    saved = load_model(run, "classification")
    task = ClassificationTask(saved.config)
    batches = task.eval_set(images)
    outcomes: Outcomes
    try:
        outcomes, _ = task.evaluate(
            saved.model, evaluation_loader(batches), len(batches), name="the test images", device=device
        )
    except GlocalError as error:
        raise GlocalError(f"test: {error}; the runs are kept") from error
    return outcomes
