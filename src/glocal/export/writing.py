"""Export a model: write a file, read it back, compare it with the model, and move it into place."""

import copy
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from glocal.errors import GlocalError, check_choice, first_line
from glocal.export.description import (
    FORMATS,
    SIDES,
    Description,
    Format,
    InvalidFileError,
    Runtime,
    Size,
    height_and_width,
)
from glocal.export.formats import HALF, WRITERS, check_compiler
from glocal.export.graph import Cast, Graph, trace
from glocal.export.loading import load_exported
from glocal.export.targets import check_target, move_into_place
from glocal.export.verification import (
    OTHER_BATCH,
    OTHER_SIZE,
    TOLERANCE,
    TOLERANCE_HALF,
    Check,
    Reference,
    VerificationError,
    builtin_images,
)
from glocal.files import printable
from glocal.models.io import ModelConfig, save_model


@dataclass(frozen=True)
class Exported:
    """A written and verified file.

    Attributes:
        path: of the file, or of the folder for safetensors.
        description: its metadata.
        runtime: of the comparison.
        checks: on real images, for each batch and image size.
        tolerance: of relative differences.
        num_bytes: total size of its files.
        fixed_because: why the image size is fixed despite `dynamic`.
    """

    path: Path
    description: Description
    runtime: Runtime
    checks: tuple[Check, ...]
    tolerance: float
    num_bytes: int
    fixed_because: str | None = None

    @property
    def format(self) -> Format:
        """File format."""
        return self.description.format

    @property
    def max_difference(self) -> float:
        """The largest absolute difference of a logit."""
        return max(check.difference for check in self.checks)

    @property
    def max_relative_difference(self) -> float:
        """The largest difference of a logit, relative to the largest logit."""
        return max(check.relative for check in self.checks)


def export_model(
    model: nn.Module,
    path: str | Path,
    *,
    to: Format,
    image_size: Size,
    dynamic: bool = False,
    half: bool = False,
    batch_size: int = 1,
    classes: Sequence[str] | None = None,
    crop_pct: float | None = None,
    interpolation: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    other_sizes: Sequence[Size] = (),
    images: Sequence[Image.Image] | None = None,
    overwrite: bool = False,
    model_args: Mapping[str, Any] | None = None,
) -> Exported:
    """Write a classifier for another runtime, and compare it with the model on real images.

    Args:
        model: (B, 3, H, W) float32 -> (B, K) logits; left unchanged.
        path: of the file, with the suffix of the format; for safetensors a folder.
        to: the format.
        image_size: side in pixels, or height and width.
        dynamic: dynamic batch, and if the model supports it dynamic height and width, multiples of 32.
        half: 16-bit weights.
        batch_size: if fixed.
        classes: one name per logit; by default "0", "1", ...
        crop_pct: see `resize_crop`; this and the next three by default from timm's configuration of the model.
        interpolation: see `glocal.data.transforms.resize_crop`.
        mean: by channel, of pixels in [0, 1].
        std: by channel, of pixels in [0, 1].
        other_sizes: further image sizes to compare.
        images: for the comparison; by default `builtin_images`.
        overwrite: replace a previous export of the same format.
        model_args: for safetensors, see `glocal.models.io.ModelConfig.of_classifier`.

    Raises:
        VerificationError: if the logits differ too much; the file is removed.
        GlocalError: if an argument is invalid, the model or this machine does not support it, or writing fails; an
            existing file is kept.
    """
    path, sizes = Path(path), tuple(map(height_and_width, (image_size, *other_sizes)))
    _check(to, sizes, dynamic, half, batch_size)
    check_target(path, to, overwrite)
    plain = copy.deepcopy(model).cpu().float().eval()
    cfg: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    description = Description(
        format=to,
        name=cfg.get("architecture") or type(model).__name__,
        classes=(),
        image_size=sizes[0],
        crop_pct=float(cfg.get("crop_pct", 1.0) if crop_pct is None else crop_pct),
        interpolation=interpolation or cfg.get("interpolation", "bicubic"),
        mean=tuple(mean or cfg.get("mean", IMAGENET_DEFAULT_MEAN)),
        std=tuple(std or cfg.get("std", IMAGENET_DEFAULT_STD)),
        batch_size=batch_size,
        half=half,
    )
    reference = Reference(plain, images or builtin_images(max(batch_size, OTHER_BATCH)), description)
    names = _names(classes, num_classes=reference.logits(1, sizes[0]).shape[1])
    graph = _graph(plain, description, dynamic)
    if len(sizes) > 1 and "size" not in graph.dynamic:
        raise GlocalError(f"size: expected one, as {description.name} has a fixed size ({graph.reason})")
    description = replace(description, classes=names, dynamic=graph.dynamic)
    _check_readable(description)
    batch_sizes = (batch_size, OTHER_BATCH if batch_size != OTHER_BATCH else 1) if graph.dynamic else (batch_size,)
    if "size" in graph.dynamic and len(sizes) == 1:
        sizes = (*sizes, (sizes[0][0] + OTHER_SIZE[0], sizes[0][1] + OTHER_SIZE[1]))
    tolerance = TOLERANCE_HALF[to] if half else TOLERANCE
    with _temporary(path) as made:
        _write(plain, graph, made, description, model_args)
        exported = load_exported(made, trust=True)
        checks = tuple(reference.check(exported, batch_sizes, sizes))
        _check_differences(path, checks, tolerance)
        num_bytes = move_into_place(made, path)
    return Exported(
        path=path,
        description=description,
        runtime=exported.runtime,
        checks=checks,
        tolerance=tolerance,
        num_bytes=num_bytes,
        fixed_because=graph.reason if dynamic else None,
    )


def _check(to: str, sizes: Sequence[tuple[int, int]], dynamic: bool, half: bool, batch_size: int) -> None:
    check_choice("to", to, FORMATS)
    if wrong := [side for size in sizes for side in size if side not in SIDES]:
        raise GlocalError(f"size: expected {SIDES[0]} to {SIDES[-1]} pixels, got {wrong[0]}")
    if len(sizes) > 1 and not dynamic:
        raise GlocalError("size: expected one, or --dynamic (dynamic=True) for several")
    if batch_size < 1:
        raise GlocalError(f"batch: expected at least 1, got {batch_size}")
    if to == "safetensors" and half:
        raise GlocalError("half: expected another format; safetensors models are float32, for further training")
    if to == "safetensors" and sizes[0][0] != sizes[0][1]:
        raise GlocalError("size: expected a square for safetensors, as in training, got {} x {}".format(*sizes[0]))
    if to == "aoti":
        check_compiler()


def _names(classes: Sequence[str] | None, num_classes: int) -> tuple[str, ...]:
    if classes is None:
        return tuple(map(str, range(num_classes)))
    if len(classes) != num_classes:
        raise GlocalError(f"classes: expected {num_classes} names, one per logit, got {len(classes)}")
    return tuple(classes)


def _check_readable(description: Description) -> None:
    """Check that the description can be read back."""
    try:
        Description.of(description.text())
    except InvalidFileError as error:
        raise GlocalError(f"the exported model could not be loaded again: {error.reason}") from error


def _graph(model: nn.Module, description: Description, dynamic: bool) -> Graph:
    to = description.format
    if to == "safetensors":
        return Graph(None, ("batch",), "safetensors models have a fixed size")
    if description.half and to in HALF:
        model = Cast(model, HALF[to]).eval()
    return trace(model, image_size=description.image_size, batch_size=description.batch_size, dynamic=dynamic)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A path of the same name in a temporary folder beside it, which is removed at the end."""
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".tmp-") as folder:
            yield Path(folder) / path.name
    except OSError as error:
        raise GlocalError(f"out: cannot write {printable(path)} ({error.strerror or error})") from error


def _write(
    model: nn.Module, graph: Graph, path: Path, description: Description, model_args: Mapping[str, Any] | None
) -> None:
    to = description.format
    if graph.program is None:
        _save(model, path, description, model_args)
        return
    try:
        WRITERS[to](graph.program, path, description.text(), description.half)
    except (GlocalError, OSError):
        raise
    except Exception as error:  # exporters may raise anything
        raise GlocalError(f"{description.name} cannot be exported as {to}: {first_line(error)}") from error


def _save(model: nn.Module, folder: Path, description: Description, model_args: Mapping[str, Any] | None) -> None:
    if description.interpolation != "bicubic":
        raise GlocalError(
            f"safetensors: expected a model with bicubic resize, got {description.interpolation}; choose another format"
        )
    cfg: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    if (tuple(cfg.get("mean", ())), tuple(cfg.get("std", ()))) != (description.mean, description.std):
        raise GlocalError("safetensors: expected mean and std of timm's configuration of the model, got others")
    config = ModelConfig.of_classifier(
        model,
        classes=description.classes,
        image_size=description.image_size[0],
        crop_pct=description.crop_pct,
        keywords=model_args,
    )
    save_model(model, folder, config)


def _check_differences(path: Path, checks: tuple[Check, ...], tolerance: float) -> None:
    worst = max(checks, key=lambda check: check.relative)
    if worst.relative > tolerance:
        height, width = worst.image_size
        raise VerificationError(
            f"{printable(path)}: its logits differ from the model's by {worst.difference:.2g}, "
            f"{worst.relative:.2g} of the largest (tolerance {tolerance:g}), for {worst.batch_size} images of "
            f"{height} x {width}; the file was removed. Another format may work",
            checks,
        )
