"""A trained detector or segmenter on disk, in the format of `glocal.training.saved`: safetensors, JSON and a digest.

    FOLDER/model.safetensors   the weights; its metadata holds the text of config.json and a digest over both
    FOLDER/config.json         task, head, backbone, classes, preprocessing: what `Architecture` has

A file is untrusted: heads and backbones are names of a closed list and of timm's registry, options have ranges, shapes
are compared on the meta device before anything is allocated.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from glocal.errors import CheckpointError
from glocal.files import printable
from glocal.tasks.architecture import Architecture, Task, build, describe
from glocal.training.saved_file import Content, Form, digest_of, read_model, write_model

FORM = Form(describe, build, "glocal")
_COMMANDS = {"detection": "detect", "segmentation": "segment"}


@dataclass(frozen=True, eq=False)
class SavedTaskModel:
    """A detector or segmenter as its file has it.

    Attributes:
        architecture: what it is.
        model: on the CPU, in eval mode.
        digest: SHA-256 over configuration and weights, as hex, checked; None for a file that glocal did not write.
    """

    architecture: Architecture
    model: Any
    digest: str | None

    @property
    def identity(self) -> str:
        """The digest; of a file without one, the SHA-256 over what was loaded."""
        return self.digest or digest_of(self.architecture.to_json(), self.model.state_dict())


def save_task_model(model: nn.Module, folder: str | Path, architecture: Architecture) -> None:
    """Write a model into a folder; equal models give equal bytes.

    Raises:
        GlocalError: if a weight is not finite, or the model is not of the architecture.
        OSError: if it cannot be written.
    """
    write_model(model, Path(folder), architecture.to_json(), FORM)


def load_task_model(path: str | Path, task: Task | None = None) -> SavedTaskModel:
    """Read a model that `save_task_model` wrote.

    Args:
        path: the .safetensors file, or the folder it is in.
        task: that it must be for.

    Raises:
        CheckpointError: if there is none, it is damaged, or it is not what its configuration says, or for another task.
    """
    saved = read_model(path, FORM, _loaded)
    if task is not None and saved.architecture.task != task:
        raise CheckpointError(
            f"{printable(path)}: expected a model for {task}, got one for {saved.architecture.task}; "
            f"`glocal {_COMMANDS[saved.architecture.task]}` takes it"
        )
    return saved


def _loaded(content: Content) -> SavedTaskModel:
    model = build(content.description)
    model.load_state_dict(content.tensors)
    return SavedTaskModel(content.description, model.eval(), content.digest)
