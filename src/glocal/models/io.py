"""Saved models: the format in which every command writes and reads classifiers, detectors and segmenters.

    FOLDER/model.safetensors   the weights; its metadata holds the text of config.json and a digest over both
    FOLDER/config.json         the fields of `ModelConfig`; for a classifier in timm's format

``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads the same classifier; model.safetensors alone is
sufficient.

A file is untrusted: nothing in it is run, imported or looked up elsewhere. Names of models and heads come from closed
lists, keywords and options have ranges (`glocal.models._config`), and sizes and shapes are compared with those of the
model on the meta device before anything is allocated (`glocal.models._safetensors`). The digest detects damage,
not forgery.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import nn

from glocal.errors import CheckpointError, GlocalError, first_line
from glocal.files import atomic_write_bytes, printable
from glocal.formatting import few
from glocal.heads import create_detector, create_segmenter
from glocal.heads.detection import DETECTORS
from glocal.heads.settings import PUBLISHED
from glocal.models._config import AGAIN, CONFIG, FileError, check_config, timm_config
from glocal.models._safetensors import (
    MAX_HEADER,
    WEIGHTS,
    digest_of,
    first_not_finite,
    layout_differences,
    layout_of,
    open_regular,
    plain_tensors,
    read_header,
    read_tensors,
    serialise,
)

__all__ = [
    "CONFIG",
    "MAX_HEADER",
    "WEIGHTS",
    "ModelConfig",
    "SavedModel",
    "TaskName",
    "build_head",
    "find_model",
    "load_model",
    "save_model",
    "triple",
]

TaskName = Literal["classification", "detection", "segmentation"]
Triple = tuple[float, float, float]
KINDS = {"classification": "classifier", "detection": "detector", "segmentation": "segmenter"}
_COMMANDS = {
    "classification": "`glocal eval` and `glocal predict` take it",
    "detection": "`glocal detect` takes it",
    "segmentation": "`glocal segment` takes it",
}
LONGER = 1333 / 800
"""max_size over min_size of the published settings on COCO."""


@dataclass(frozen=True)
class ModelConfig:
    """Configuration of a classifier, detector or segmenter: the contents of config.json.

    Attributes:
        task: classification, detection or segmentation.
        architecture: a name of glocal or timm, without a tag; of a detector or segmenter its backbone.
        classes: names in the order of logits or labels.
        image_size: side in pixels; of a detector or segmenter the shorter side that images are resized to.
        mean: by channel, of pixels in [0, 1].
        std: by channel, of pixels in [0, 1].
        crop_pct: of a classifier, the fraction of the resized shorter side that the centre crop keeps.
        keywords: of a classifier, those of its architecture.
        head: a kind of `glocal.heads.create_detector` or `create_segmenter`; empty for a classifier.
        preset: sizes of the head; of a segmenter empty for the published ones.
        norm: of a head's backbone: ``batch``, or ``frozen``: BatchNorm statistics are fixed.
        options: keywords of the head, see `glocal.heads.settings.OPTIONS`.
        category_ids: COCO category ids of the classes in a detector's predictions; empty for 1, 2, ...
    """

    task: TaskName
    architecture: str
    classes: tuple[str, ...]
    image_size: int
    mean: Triple
    std: Triple
    crop_pct: float = 1.0
    keywords: Mapping[str, Any] = field(default_factory=dict)
    head: str = ""
    preset: str = ""
    norm: str = "batch"
    options: Mapping[str, float] = field(default_factory=dict)
    category_ids: tuple[int, ...] = ()

    @classmethod
    def of_classifier(
        cls,
        model: nn.Module,
        *,
        classes: Sequence[str],
        image_size: int,
        crop_pct: float = 1.0,
        keywords: Mapping[str, Any] | None = None,
    ) -> "ModelConfig":
        """The configuration of a model created by timm, glocal's included.

        Args:
            model: the classifier.
            classes: one name for each logit.
            image_size: side in pixels of its images.
            crop_pct: see `ModelConfig`.
            keywords: those it was created with that timm does not store.

        Raises:
            GlocalError: if timm did not create it.
        """
        cfg: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
        if not {"architecture", "mean", "std"} <= {*cfg}:
            raise GlocalError(f"model: expected one created by timm, got {type(model).__name__}")
        return cls(
            task="classification",
            architecture=cfg["architecture"],
            classes=tuple(classes),
            image_size=image_size,
            mean=triple(cfg["mean"]),
            std=triple(cfg["std"]),
            crop_pct=crop_pct,
            keywords=dict(keywords or {}),
        )

    @classmethod
    def from_json(cls, text: str, num_tensors: int) -> "ModelConfig":
        """Check the text of a config.json.

        Args:
            text: of the file, untrusted.
            num_tensors: number of tensors of the model, an upper bound of its depth.

        Raises:
            FileError: if it describes no model of glocal or timm.
        """
        return cls(**check_config(text, num_tensors))

    def to_json(self, model: nn.Module | None = None) -> str:
        """The text of config.json.

        Args:
            model: of a classifier: timm adds what it knows, such as the origin of the pretrained weights.
        """
        if self.task == "classification":
            model = _on_meta(self) if model is None else model
            return timm_config(model, self.classes, self.image_size, self.crop_pct, self.keywords)
        fields = {
            "task": self.task,
            "head": self.head,
            "backbone": self.architecture,
            "classes": self.classes,
            "image_size": self.image_size,
            "mean": self.mean,
            "std": self.std,
            "preset": self.preset,
            "norm": self.norm,
            "options": dict(self.options),
            "category_ids": self.category_ids,
        }
        return json.dumps(fields, indent=2) + "\n"

    def build(self) -> Any:
        """The model with random weights."""
        if self.task != "classification":
            return build_head(self)
        overlay = {
            "input_size": (3, self.image_size, self.image_size),
            "crop_pct": self.crop_pct,
            "interpolation": "bicubic",
            "crop_mode": "center",
            "mean": self.mean,
            "std": self.std,
            "num_classes": len(self.classes),
        }
        keywords = {"num_classes": len(self.classes), **self.keywords}
        return timm.create_model(self.architecture, pretrained=False, pretrained_cfg_overlay=overlay, **keywords)

    @property
    def name(self) -> str:
        """For messages and tables."""
        return f"{self.head} on {self.architecture}" if self.head else self.architecture

    @property
    def has_masks(self) -> bool:
        """Whether it predicts a mask for each object."""
        return self.task == "detection" and DETECTORS[self.head].masks

    @property
    def ids(self) -> tuple[int, ...]:
        """The category id of each class in prediction files."""
        return self.category_ids or tuple(range(1, len(self.classes) + 1))


@dataclass(frozen=True, eq=False)
class SavedModel:
    """A loaded model.

    Attributes:
        config: its configuration.
        model: on the CPU, in eval mode. A classifier: (B, 3, S, S) normalised images -> (B, K) logits.
        digest: SHA-256 over configuration and weights, as hex, checked; None for a file that glocal did not write.
    """

    config: ModelConfig
    model: Any
    digest: str | None

    @property
    def identity(self) -> str:
        """The digest; of a file without one, the SHA-256 over the loaded model."""
        if self.digest is not None:
            return self.digest
        of = self.config
        loaded = json.dumps([of.name, of.classes, of.image_size, of.crop_pct, of.mean, of.std])
        return digest_of(loaded if of.task == "classification" else of.to_json(), self.model.state_dict())

    @property
    def name(self) -> str:
        """See `ModelConfig`, here and below."""
        return self.config.name

    @property
    def classes(self) -> tuple[str, ...]:
        """In the order of logits or labels."""
        return self.config.classes

    @property
    def image_size(self) -> int:
        """In pixels."""
        return self.config.image_size

    @property
    def crop_pct(self) -> float:
        """Of a classifier."""
        return self.config.crop_pct

    @property
    def mean(self) -> Triple:
        """By channel."""
        return self.config.mean

    @property
    def std(self) -> Triple:
        """By channel."""
        return self.config.std


def save_model(model: nn.Module, folder: str | Path, config: ModelConfig) -> None:
    """Write a model into a folder; equal models give equal bytes.

    Args:
        model: left unchanged.
        folder: created if missing; a model in it is replaced.
        config: its configuration.

    Raises:
        GlocalError: if a weight is not finite, or the saved model could not be loaded again.
        OSError: if writing fails; the folder then has the previous model, or one without its config.json.
    """
    text, tensors = config.to_json(model), plain_tensors(model.state_dict().items())
    if name := first_not_finite(tensors):
        raise GlocalError(f"model: expected finite weights, got NaN or infinity in {name}; it is not saved")
    try:
        written = ModelConfig.from_json(text, len(tensors))
        problems = layout_differences(layout_of(_on_meta(written).state_dict()), layout_of(tensors))
    except FileError as error:
        raise GlocalError(f"model: could not be loaded again if saved: {error}") from error
    if problems:
        raise GlocalError(
            f"model: could not be loaded again if saved: it differs from the {written.name} of its configuration "
            f"({problems}); pass the keywords it was created with"
        )
    if replace(written, keywords=config.keywords) != config:  # timm adds keywords of its own
        raise GlocalError(
            "model: expected a configuration with the architecture, mean and std of the model, got others"
        )
    content, folder = serialise(tensors, text), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(folder / CONFIG, text.encode())
    atomic_write_bytes(folder / WEIGHTS, content)


def load_model(path: str | Path, task: TaskName | None = None) -> SavedModel:
    """Read a model that `save_model` wrote, or a classifier in the format of timm and Hugging Face.

    Args:
        path: the .safetensors file, or the folder it is in: of a run, of one run of a comparison, of a checkpoint.
        task: expected task; None for any.

    Raises:
        CheckpointError: if there is none, it is damaged, does not match its configuration, or is for another task.
    """
    file = find_model(Path(path))
    try:
        return _load(file, task)
    except FileError as error:
        reason, advice = error.reason, error.advice
    except RecursionError:
        reason, advice = "its configuration is nested too deeply", AGAIN
    except OSError as error:
        reason, advice = f"is unreadable ({error.strerror or error})", "check the path and its permissions"
    except (MemoryError, torch.OutOfMemoryError):
        reason, advice = "does not fit into memory", "free some memory, or use another machine"
    raise CheckpointError(f"{printable(file)}: {printable(reason)}; {printable(advice)}")


def find_model(path: Path) -> Path:
    """The model file in a folder, or the file itself.

    Raises:
        CheckpointError: if a folder has none, or several.
    """
    if not path.is_dir():
        return path
    if (path / WEIGHTS).exists():
        return path / WEIGHTS
    found = [
        file.parent for pattern in ("runs/*", "checkpoints/*") for file in sorted(path.glob(f"{pattern}/{WEIGHTS}"))
    ]
    if found:
        names = few(found, 20, "\n  ", show=printable)
        raise CheckpointError(
            f"{printable(path)}: expected one model, got a folder of {len(found)}; choose one:\n  {names}"
        )
    raise CheckpointError(
        f"{printable(path)}: expected a folder with {WEIGHTS}, got one without; give the folder of a run or the file"
    )


def build_head(
    config: ModelConfig, *, pretrained: bool = False, tag: str = "", frozen_stages: int = 0, drop_path: float = 0.0
) -> Any:
    """A detector or segmenter with random weights, or a pretrained backbone.

    Args:
        config: its configuration.
        pretrained: load timm's weights into the backbone.
        tag: of the pretrained weights.
        frozen_stages: number of backbone stages to freeze.
        drop_path: rate of stochastic depth in the backbone.

    Raises:
        GlocalError: if it cannot be built.
    """
    given: dict[str, Any] = {
        "preset": config.preset,
        "pretrained": pretrained,
        "norm": config.norm,
        "frozen_stages": frozen_stages,
        "backbone_kwargs": {"drop_path_rate": drop_path} if drop_path else None,
        **config.options,
    }
    backbone = f"{config.architecture}.{tag}" if tag else config.architecture
    if config.task == "segmentation":
        given["preset"] = config.preset or PUBLISHED["segmentation"]
        return create_segmenter(config.head, backbone, len(config.classes), **given)
    size = config.image_size
    sides: dict[str, Any] = {"min_size": size, "max_size": size}
    if config.preset == "coco" and DETECTORS[config.head].knows_padding:
        sides["max_size"] = round(size * LONGER)
    elif config.preset == "coco":
        sides["fixed_size"] = (size, size)
    given |= {"image_mean": list(config.mean), "image_std": list(config.std)}
    return create_detector(config.head, backbone, len(config.classes), **sides, **given)


def _on_meta(config: ModelConfig) -> nn.Module:
    """The model on the meta device: names, types and shapes of its weights without memory.

    Raises:
        FileError: if the configuration is invalid.
    """
    with torch.device("meta"):
        return _blank(config)


def triple(values: Sequence[float]) -> Triple:
    """Three values, one per channel."""
    red, green, blue = map(float, values)
    return red, green, blue


def _load(path: Path, task: TaskName | None) -> SavedModel:
    with open_regular(path) as file:
        header = read_header(file, path)
        config = ModelConfig.from_json(header.config, len(header.tensors))
        if task is not None and config.task != task:
            raise FileError(f"expected a {KINDS[task]}, got a {KINDS[config.task]}", _COMMANDS[config.task])
        tensors = read_tensors(file, header, layout_of(_on_meta(config).state_dict()), config.name)
    model = _blank(config)
    model.load_state_dict(tensors)
    return SavedModel(config, model.eval(), header.digest)


def _blank(config: ModelConfig) -> nn.Module:
    """The model with random weights; torch's random state is restored."""
    try:
        with torch.random.fork_rng(devices=[]):
            return config.build()
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # invalid values may raise anything
        if isinstance(error.__cause__, ModuleNotFoundError):
            raise  # its message says what to install
        raise FileError(f"cannot build {config.name} from its configuration ({first_line(error)})") from error
