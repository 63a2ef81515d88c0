"""A trained model on disk: the one format that every command writes and reads.

    FOLDER/model.safetensors   the weights; its metadata holds the text of config.json and a digest over both
    FOLDER/config.json         architecture, keywords, classes, preprocessing, as timm writes them

``timm.create_model("local-dir:FOLDER", pretrained=True)`` gives the same model; model.safetensors alone is complete.

A file is untrusted: nothing in it is run, imported or looked up elsewhere; the architecture is a name in timm's
registry, its keywords are of a closed list, and shapes are compared before anything is allocated. The digest tells
damage, not forgery.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from glocal.training.saved_config import CONFIG, build, config_text, describe
from glocal.training.saved_file import MAX_HEADER, WEIGHTS, Content, Form, digest_of, read_model, write_model

FORM = Form(describe, build, "timm")


@dataclass(frozen=True, eq=False)
class SavedModel:
    """A trained classifier as its file has it.

    Attributes:
        model: (B, 3, S, S) normalised images -> (B, K) logits; on the CPU, in eval mode.
        name: its architecture, a name of glocal or timm.
        classes: the K class names, in the order of the logits; "0", "1", ... where the file names none.
        image_size: S, side in pixels.
        crop_pct: share of the resized shorter side that the centre crop keeps, see `data.transforms.resize_crop`.
        mean: by channel, of pixels in [0, 1].
        std: by channel, of pixels in [0, 1].
        digest: SHA-256 over configuration and weights, as hex, checked; None for a file that glocal did not write.
    """

    model: nn.Module
    name: str
    classes: tuple[str, ...]
    image_size: int
    crop_pct: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str | None

    @property
    def identity(self) -> str:
        """The digest; of a file without one, the SHA-256 over what was loaded."""
        loaded = [self.name, self.classes, self.image_size, self.crop_pct, self.mean, self.std]
        return self.digest or digest_of(json.dumps(loaded), self.model.state_dict())


def save_model(
    model: nn.Module,
    folder: str | Path,
    *,
    classes: Sequence[str],
    image_size: int,
    crop_pct: float = 1.0,
    model_args: Mapping[str, Any] | None = None,
) -> None:
    """Write a model of timm's factory, glocal's among them, into a folder; equal models give equal bytes.

    Args:
        model: the classifier; it is not changed.
        folder: made if it is not there; a model in it is replaced.
        classes: one name for each logit.
        image_size: side in pixels of its images.
        crop_pct: see `SavedModel`.
        model_args: keywords it was made with that timm's factory does not remember.

    Raises:
        GlocalError: if a weight is not finite, or what is written could not be loaded again.
        OSError: if it cannot be written; the folder then has the model from before, or one without its config.json
            beside.
    """
    config = config_text(model, classes, image_size, crop_pct, model_args)
    write_model(model, Path(folder), config, FORM)


def load_model(path: str | Path) -> SavedModel:
    """Read a model that `save_model` wrote, or one in the format of timm and Hugging Face.

    Args:
        path: the .safetensors file, or the folder it is in: of a run, of one run of a comparison, of a checkpoint.

    Raises:
        CheckpointError: if there is none, it is damaged, or it is not what its configuration says.
    """
    return read_model(path, FORM, _loaded)


def _loaded(content: Content) -> SavedModel:
    description = content.description
    model = build(description)
    model.load_state_dict(content.tensors)
    return SavedModel(
        model=model.eval(),
        name=description.name,
        classes=description.classes,
        image_size=description.image_size,
        crop_pct=description.crop_pct,
        mean=description.mean,
        std=description.std,
        digest=content.digest,
    )


__all__ = ["CONFIG", "MAX_HEADER", "WEIGHTS", "SavedModel", "load_model", "save_model"]
