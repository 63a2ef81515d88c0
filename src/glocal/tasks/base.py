"""`Task`: what a model is trained and evaluated for. Classification, detection and segmentation are the three."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import nn

from glocal.data import Skipped
from glocal.errors import GlocalError, nearest
from glocal.files import printable
from glocal.models.io import ModelConfig, TaskName, save_model
from glocal.schema import ImageCounts, TaskDescription
from glocal.training.config import TrainConfig
from glocal.training.evaluation import evaluate_batches
from glocal.training.loader import Batch, BatchDataset
from glocal.training.trainable import Trainable


class Task(nn.Module, Trainable):
    """Datasets, model, loss, evaluation, prediction and saving; every command uses the same object.

    A module, so that its tensors go to the device; it has no parameters. What a loop asks of it is documented in
    `Trainable`.

    Args:
        model_config: classes, preprocessing and head, saved beside the weights.
        config: how a model is trained.
        data: training and validation images; None for a task that only evaluates or predicts.
        needs_every_image: see `Trainable`.
        keep_outputs: keep logits or label maps of the validation images in their outcomes.
    """

    name: ClassVar[TaskName]

    def __init__(
        self,
        model_config: ModelConfig,
        config: TrainConfig = TrainConfig(),  # noqa: B008 - immutable
        data: Any = None,
        *,
        needs_every_image: bool = False,
        keep_outputs: bool = False,
    ) -> None:
        super().__init__()
        self.model_config, self.config, self.data = model_config, config, data
        self.needs_every_image, self.keep_outputs = needs_every_image, keep_outputs

    @classmethod
    @abstractmethod
    def for_data(cls, data: Any, config: TrainConfig, **options: Any) -> Self:
        """The task of training a model on a data source; ``options`` are those of the class.

        Raises:
            GlocalError: for a model, head or setting that the task or the data do not allow.
        """

    @abstractmethod
    def eval_set(self, images: Any) -> BatchDataset:
        """Labelled images to evaluate a saved model on; their classes are found among the model's by name."""

    @abstractmethod
    def predict(self, model: nn.Module, images: Any, device: str | torch.device) -> Any:
        """Predictions for uint8 images, one per image, as arrays on the CPU.

        Args:
            model: in eval mode, on the device, as the task is.
            images: (3, H, W) each; of a classifier resized and cropped to one size, (B, 3, S, S).
            device: of the model.
        """

    def evaluate(
        self,
        model: nn.Module,
        batches: Iterable[Batch],
        num_images: int,
        *,
        name: str = "the data set",
        device: str | torch.device = "cpu",
        on_error: Literal["stop", "skip"] = "stop",
        progress: Callable[[int, int], None] = lambda done, total: None,
        take: Callable[[Any], None] = lambda _: None,
    ) -> tuple[Any, list[Skipped]]:
        """Outcomes of labelled images, and the unreadable images.

        Args:
            model: of this task.
            batches: of the images, with labels of the model.
            num_images: in all batches.
            name: of the data set, for errors.
            device: where the model runs.
            on_error: what to do with an unreadable image.
            progress: is told how many images are done, of how many.
            take: is given the outcomes of each batch.

        Raises:
            GlocalError: if no image is readable, or one is not and on_error is ``stop``.
        """
        parts, skipped, done = [], list[Skipped](), 0
        with torch.no_grad():
            for part, batch in evaluate_batches(self, model, batches, device):
                if on_error == "stop" and batch.skipped:
                    raise GlocalError(f"{_reason(batch.skipped[0])}; --on-error skip leaves it out")
                done += len(batch.labels) + len(batch.skipped)
                progress(done, num_images)
                skipped += batch.skipped
                parts.append(part)
                take(part)
        outcomes = self.join(parts)
        if not len(outcomes):
            got = f"{len(skipped)} unreadable, such as {_reason(skipped[0])}" if skipped else "an empty set"
            raise GlocalError(
                f"data: expected readable images in {printable(name)}, got {got}; repair the files, or give others"
            )
        return outcomes, skipped

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of labels."""
        return self.model_config.classes

    @property
    def skipped(self) -> Sequence[Skipped]:
        """None for a task without data."""
        return () if self.data is None else self.data.skipped

    def plan(self) -> dict[str, Any]:
        """The data."""
        data = self.data
        return {"data": {"fingerprint": data.fingerprint, "classes": list(data.classes), "images": len(data.train)}}

    def about(self) -> TaskDescription:
        """Classes, and how many images there are."""
        data = self.data
        counts: ImageCounts = {"train": len(data.train), "val": len(data.val), "skipped": len(data.skipped)}
        return {"classes": list(self.classes), "images": counts}

    def save(self, model: nn.Module, folder: Path) -> None:
        """With its configuration."""
        save_model(model, folder, self.model_config)


def _reason(bad: Skipped) -> str:
    return f"{printable(bad.path)}: {printable(bad.reason)}"


def labels_in_model(known: Sequence[str], classes: Sequence[str]) -> list[int]:
    """The label that each class of a data set has among the classes that a model knows, by name.

    Raises:
        GlocalError: naming those that the model does not know.
    """
    of_model = {name: label for label, name in enumerate(known)}
    if unknown := [name for name in classes if name not in of_model]:
        shown = "; ".join(f"{printable(name)}{printable(nearest(name, known))}" for name in unknown[:5])
        more = f"; and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise GlocalError(
            f"data: expected classes that the model knows, got {shown}{more}; rename them, or leave them out. "
            f"It knows {', '.join(map(printable, known[:10]))}{' ...' if len(known) > 10 else ''}"
        )
    return [of_model[name] for name in classes]
