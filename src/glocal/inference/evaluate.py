"""A trained model evaluated on labelled images, its classes found by their names."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
import torch

from glocal.data import Checked, ImageSet, Skipped, builtin_names, check_folder, load_data
from glocal.data.sets import Folder
from glocal.errors import GlocalError, check_choice
from glocal.export import ExportedModel
from glocal.files import printable
from glocal.inference.inputs import Inputs, read_batches
from glocal.inference.models import Model, reader_for, task_and_model
from glocal.inference.predict import BATCH_SIZE
from glocal.metrics.classification import Outcomes
from glocal.schema import ClassScore, Evaluation, ReliabilityBin, SkippedImage
from glocal.training import ImageBatches
from glocal.training.loader import Batch

Part = Literal["train", "val", "all"]
OnError = Literal["stop", "skip"]
MISTAKES = 20
WORST = 5


@dataclass(frozen=True)
class EvaluationSets:
    """The labelled images to evaluate on.

    Attributes:
        name: what the user called the data.
        part: train, val or all.
        sets: of images, each with classes of its own.
        split: how the parts came about, in a sentence.
        skipped: files left out, with reasons.
        warnings: what the user should know, in sentences.
    """

    name: str
    part: Part
    sets: tuple[ImageSet, ...]
    split: str
    skipped: tuple[Skipped, ...]
    warnings: tuple[str, ...]


def evaluation_sets(
    data: str | Path,
    part: Part = "val",
    *,
    on_error: OnError = "stop",
    split_seed: int = 0,
    follow_links: bool = False,
    progress: bool = True,
    workers: int | None = None,
) -> EvaluationSets:
    """The images of one part of a data set, or all of them.

    Args:
        data: as `load_data` takes it.
        part: ``val`` as training with the same seed held it out or the folder has it, ``train``, or ``all`` images,
            for which a folder needs neither parts nor two images of a class.
        on_error: ``stop`` at files that are no images, or ``skip`` and list them.
        split_seed: of the part held out, where there is no val beside train.
        follow_links: whether links in a folder are followed.
        progress: show progress bars.
        workers: data-loading workers.

    Raises:
        GlocalError: as `load_data`, or if there is no image.
    """
    for name, value, known in (("part", part, get_args(Part)), ("on-error", on_error, get_args(OnError))):
        check_choice(name, value, known)
    if part == "all" and str(data).partition(":")[0] not in builtin_names():
        checked = check_folder(data, follow_links=follow_links, progress=progress, workers=workers)
        if isinstance(checked, Checked):
            return _whole_folder(str(data), checked, on_error)
    source = load_data(
        data, on_error=on_error, split_seed=split_seed, follow_links=follow_links, progress=progress, workers=workers
    )
    sets = {"train": (source.train,), "val": (source.val,), "all": (source.train, source.val)}[part]
    # which images are in both parts says nothing of one part, or of all of them
    return EvaluationSets(source.name, part, sets, source.split, source.skipped, source.warnings)


def _whole_folder(name: str, checked: Checked, on_error: OnError) -> EvaluationSets:
    if checked.skipped and on_error == "stop":
        shown = "".join(f"\n  {printable(bad.path)}: {printable(bad.reason)}" for bad in checked.skipped[:5])
        raise GlocalError(
            f"data: expected only readable images in {printable(name)}, got "
            f"{len(checked.skipped)} unreadable{shown}\n--on-error skip leaves them out"
        )
    flat = [
        (path, label)
        for label, cls in enumerate(checked.classes)
        for part in checked.tree.parts
        for path in checked.good(part).get(cls, [])
    ]
    if not flat:
        raise GlocalError(f"data: expected readable images in the class folders of {printable(name)}, got none")
    images = ImageSet(
        name="all",
        classes=checked.classes,
        labels=np.array([label for _, label in flat], dtype=np.int64),
        paths=tuple(path for path, _ in flat),
        store=Folder(checked.tree.root, checked.limits, checked.follow_links),
        rows=np.arange(len(flat)),
    )
    return EvaluationSets(name, "all", (images,), "all images of the folder", checked.skipped, ())


def evaluate(
    saved: Model,
    data: EvaluationSets,
    *,
    on_error: OnError = "stop",
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Evaluate a model.

    Args:
        saved: the model.
        data: labelled images; their classes are found among the model's by name.
        on_error: ``stop`` at an image that became unreadable since it was checked, or ``skip`` and list it.
        batch_size: images per forward pass.
        workers: data-loading workers; by default one per processor.
        device: where the model runs.
        progress: called after each batch with the images done and all.

    Returns:
        Results as JSON, documented in docs/inference.md.

    Raises:
        GlocalError: if the model has no class of a name, or an image became unreadable.
    """
    task, model = task_and_model(saved, device)
    sets = [task.eval_set(images) for images in data.sets]
    batches = (batch for images in sets for batch in _batches(saved, images, batch_size, workers))

    def check(outcomes: Outcomes) -> None:
        if not outcomes.finite.all():
            raise GlocalError(f"{saved.name}: its outputs for images of {printable(data.name)} are not finite")

    outcomes, skipped = task.evaluate(
        model,
        batches,
        sum(map(len, sets)),
        name=data.name,
        device=device,
        on_error=on_error,
        progress=progress,
        take=check,
    )
    bad = {one.path for one in skipped}
    paths = [path for images in data.sets for path in images.paths if path not in bad]
    return _results(saved, data, outcomes, paths, [*data.skipped, *skipped])


def _batches(saved: Model, data: ImageBatches, batch_size: int, workers: int | None) -> Iterator[Batch]:
    """As predictions read images; unreadable ones are black at the end, so that the outputs of others stay the same."""
    images = data.images
    for read in read_batches(reader_for(saved, Inputs.of(images), batch_size), workers=workers):
        bad = {i: error for i, error in enumerate(read.errors) if error is not None}
        good = [i for i in range(len(read.errors)) if i not in bad]
        pixels = read.pixels[[*good, *bad]].contiguous(memory_format=torch.channels_last) if bad else read.pixels
        labels = torch.from_numpy(data.labels[read.start + np.array(good, np.int64)])
        skipped = tuple(Skipped(images.paths[read.start + i], error) for i, error in bad.items())
        yield Batch(pixels, labels, torch.zeros_like(labels), skipped=skipped)


def _results(
    saved: Model, data: EvaluationSets, outcomes: Outcomes, paths: list[str], skipped: list[Skipped]
) -> Evaluation:
    metrics = outcomes.score(len(saved.classes))
    counts = outcomes.counts(len(saved.classes))
    per_class: list[ClassScore] = [
        {"class": name, "images": int(count), "top1": None if math.isnan(top1) else float(top1)}
        for name, count, top1 in zip(saved.classes, counts, metrics.per_class, strict=True)
    ]
    known = [(entry["top1"], entry["class"]) for entry in per_class if entry["top1"] is not None]
    return {
        "model": {
            "name": saved.name,
            "digest": saved.identity,
            "runtime": saved.runtime if isinstance(saved, ExportedModel) else "torch",
            "image_size": saved.image_size,
            "crop_pct": saved.crop_pct,
        },
        "data": {"name": data.name, "part": data.part, "split": data.split, "warnings": list(data.warnings)},
        "images": len(outcomes),
        "top1": metrics.top1,
        "top5": metrics.top5,
        "ece": metrics.ece,
        "nll": metrics.nll,
        "per_class": per_class,
        "worst_classes": [name for _, name in sorted(known, key=lambda entry: entry[0])[:WORST]],
        "missing_classes": [entry["class"] for entry in per_class if not entry["images"]],
        "confusions": [
            {"true": saved.classes[t], "predicted": saved.classes[p], "count": count}
            for count, t, p in outcomes.confusions()
        ],
        "reliability": [cast(ReliabilityBin, asdict(bin_)) for bin_ in outcomes.reliability()],
        "mistakes": [
            {
                "path": paths[i],
                "true": saved.classes[int(outcomes.label[i])],
                "predicted": saved.classes[predicted],
                "confidence": confidence,
            }
            for i, predicted, confidence in outcomes.mistakes(MISTAKES)
        ],
        "skipped": [cast(SkippedImage, asdict(bad)) for bad in skipped],
    }
