"""What a run is asked to do."""

from dataclasses import dataclass
from typing import Literal

from glocal.models.creation import Weights, default_image_size
from glocal.training.config import TrainConfig
from glocal.training.hardware import HardwareConfig


@dataclass(frozen=True)
class Request:
    """Model, recipe and hardware of a run, and how it goes about its folder and bad images.

    Attributes:
        model: a name that timm knows.
        recipe: how it is trained.
        weights: a checkpoint, ``pretrained`` for timm's own, or None for random ones.
        seed: of everything random.
        hardware: where it is trained.
        num_workers: processes that read images; None for one a processor.
        on_error: at images that cannot be read: ``stop``, or ``skip`` and list them.
        resume: go on with what is in the folder; a folder without a run is begun.
        allow_changed: go on although the data or the settings are others than before.
        tensorboard: write events for TensorBoard too.
        command: what to call this in the results.
    """

    model: str
    recipe: TrainConfig
    weights: Weights = None
    seed: int = 0
    hardware: HardwareConfig = HardwareConfig()  # noqa: RUF009 - immutable
    num_workers: int | None = None
    on_error: Literal["stop", "skip"] = "stop"
    resume: bool = False
    allow_changed: bool = False
    tensorboard: bool = False
    command: str = ""

    @property
    def image_size(self) -> int:
        """Side in pixels: the recipe's, else the model's own."""
        return self.recipe.data.image_size or default_image_size(self.model)
