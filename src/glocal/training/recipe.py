"""How a model is trained: one flat, frozen table of settings, in YAML files that name their paper."""

import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from timm.optim import list_optimizers
from yaml import YAMLError  # type: ignore[import-untyped]

from glocal.errors import GlocalError, nearest

Mode = Literal["scratch", "finetune", "probe"]
AUGMENTATIONS = ("none", "light", "randaugment")
SCHEDULES = ("cosine", "step", "poly")
TASKS = ("detect", "segment")


@dataclass(frozen=True)
class Recipe:
    """Settings of one training run.

    Attributes:
        epochs: passes over the training set; a comparison's budget stands in its place.
        image_size: side in pixels; 0 for the model's own default.
        batch_size: images in an optimizer step, over all devices. An epoch is cut into equal batches of at most this
            size, so none is left out.
        accumulate: parts that a step is cut into, one after the other, where a whole one does not fit into memory.
        optimizer: a name of ``timm.optim``.
        lr: peak learning rate.
        lr_batch_size: the batch size that ``lr`` is for; for another one it is scaled linearly (Goyal et al. 2017).
            0: ``lr`` is for ``batch_size``.
        weight_decay: not applied to biases, norms and what a model lists in ``no_weight_decay``.
        momentum: of SGD.
        schedule: ``cosine`` to ``min_lr``; ``step``: a tenth after each of the milestones; ``poly``: to ``min_lr`` as
            (1 - share of the budget) ** poly_power.
        milestones: shares of the budget; by default each third of what is left after the warm-up.
        poly_power: of ``poly``; 1 is a straight line.
        warmup: share of the budget over which the learning rate rises linearly from 0; the schedule follows.
        min_lr: learning rate at the end of the cosine or polynomial.
        label_smoothing: probability spread over all classes.
        class_balance: 0 for none; weights the loss of a class by (its share of the images) ** -class_balance, so 1
            makes all classes weigh the same.
        flip: mirror images left to right at random; switch off where left and right differ, as in digits.
        augment: what else is done to training images: ``none``; ``light``: shift by up to 1/8 of the side, borders
            reflected; ``randaugment``: random resized crop and ``auto_augment``. With a budget of a few epochs each of
            them costs more accuracy than it brings; with tens of epochs they pay.
        auto_augment: of ``randaugment``: a policy in timm's notation; empty for a crop and a flip alone. Policies
            with ``inc1`` need ``mmax9``: above 9 timm posterises to 0 bits, which Pillow 13 refuses.
        crop_scale: of ``randaugment``: smallest share of the area of an image that a crop has.
        color_jitter: of ``randaugment``: strength of brightness, contrast and saturation, where no auto_augment is.
        random_erasing: probability of erasing a rectangle of an image with noise (Zhong et al. 2020).
        repeats: how often an epoch shows an image, each time augmented anew, among as many times fewer images (Hoffer
            et al. 2020).
        crop_pct: tested images are resized to 1/crop_pct of the size and cropped to it.
        mixup: alpha of mixup, 0 for none.
        cutmix: alpha of CutMix, 0 for none.
        clip_grad: largest norm of the gradient, 0 for no limit.
        layer_decay: factor on the learning rate from each layer to the one before it; 1 for none.
        drop_path: rate of stochastic depth, 0 for none.
        ema: decay of an average of the weights, which is what is tested and kept; 0 for none.
        sync_batchnorm: normalise over the batches of all devices.
        freeze: ``backbone`` (all but the classifier), or names of modules or parameters that are not trained;
            ``*`` stands for anything.
        checkpoint_every_steps: a checkpoint is written after so many steps, and after each evaluation; 0: after
            evaluations alone.
        log_every_steps: a row of metrics.csv.
        evaluate_every_epochs: on the validation set, and at the end.
        nan_skips: how many steps whose loss or gradient is not finite are left out before the run stops; 0 stops at
            the first.
    """

    epochs: float = 30.0
    image_size: int = 0
    batch_size: int = 32
    accumulate: int = 1
    optimizer: str = "adamw"
    lr: float = 3e-3
    lr_batch_size: int = 0
    weight_decay: float = 0.05
    momentum: float = 0.9
    schedule: str = "cosine"
    milestones: tuple[float, ...] = ()
    poly_power: float = 0.9
    warmup: float = 0.1
    min_lr: float = 0.0
    label_smoothing: float = 0.1
    class_balance: float = 0.0
    flip: bool = True
    augment: str = "none"
    auto_augment: str = "rand-m9-mstd0.5-mmax9-inc1"
    crop_scale: float = 0.08
    color_jitter: float = 0.0
    random_erasing: float = 0.0
    repeats: int = 1
    crop_pct: float = 1.0
    mixup: float = 0.0
    cutmix: float = 0.0
    clip_grad: float = 1.0
    layer_decay: float = 1.0
    drop_path: float = 0.0
    ema: float = 0.0
    sync_batchnorm: bool = False
    freeze: tuple[str, ...] = ()
    checkpoint_every_steps: int = 0
    log_every_steps: int = 50
    evaluate_every_epochs: float = 1.0
    nan_skips: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "freeze", tuple(self.freeze))
        object.__setattr__(self, "milestones", tuple(self.milestones))
        share, rate = "from 0 to below 1", "0 or more"
        for name, holds, expected in (
            ("epochs", 0 < self.epochs < 1e9, "above 0"),
            ("image_size", self.image_size == 0 or 8 <= self.image_size <= 1024, "8 to 1024, or 0"),
            ("batch_size", self.batch_size >= 2, "at least 2"),
            ("accumulate", 1 <= self.accumulate <= self.batch_size, "from 1 to batch_size"),
            ("lr", self.lr > 0, "above 0"),
            ("lr_batch_size", self.lr_batch_size >= 0, rate),
            ("weight_decay", self.weight_decay >= 0, rate),
            ("momentum", 0 <= self.momentum < 1, share),
            ("schedule", self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
            ("warmup", 0 <= self.warmup < 1, f"a share of the budget, {share}"),
            (
                "milestones",
                _rises((self.warmup, *self.milestones, 1)),
                "shares of the budget, from the warmup to 1, rising",
            ),
            ("poly_power", 0 < self.poly_power <= 10, "above 0, at most 10"),
            ("min_lr", 0 <= self.min_lr <= self.lr, "from 0 to lr"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, share),
            ("class_balance", 0 <= self.class_balance <= 1, "from 0 to 1"),
            ("augment", self.augment in AUGMENTATIONS, f"one of {', '.join(AUGMENTATIONS)}"),
            ("crop_scale", 0 < self.crop_scale <= 1, "above 0, at most 1"),
            ("color_jitter", self.color_jitter >= 0, rate),
            ("random_erasing", 0 <= self.random_erasing <= 1, "from 0 to 1"),
            ("repeats", self.repeats >= 1, "at least 1"),
            ("crop_pct", 0 < self.crop_pct <= 1, "above 0, at most 1"),
            ("mixup", self.mixup >= 0, rate),
            ("cutmix", self.cutmix >= 0, rate),
            ("clip_grad", self.clip_grad >= 0, rate),
            ("layer_decay", 0 < self.layer_decay <= 1, "above 0, at most 1"),
            ("drop_path", 0 <= self.drop_path < 1, share),
            ("ema", 0 <= self.ema < 1, share),
            ("checkpoint_every_steps", self.checkpoint_every_steps >= 0, rate),
            ("log_every_steps", self.log_every_steps >= 1, "at least 1"),
            ("evaluate_every_epochs", self.evaluate_every_epochs > 0, "above 0"),
            ("nan_skips", self.nan_skips >= 0, rate),
        ):
            if not holds:
                raise GlocalError(f"recipe: {name} must be {expected}, got {getattr(self, name)!r}")
        if self.optimizer not in list_optimizers():
            hint = nearest(self.optimizer, map(str, list_optimizers()))
            raise GlocalError(f"recipe: optimizer must be one of timm's, got {self.optimizer!r}{hint}")

    @property
    def scaled(self) -> float:
        """What learning rates are multiplied by for this batch size."""
        return self.batch_size / self.lr_batch_size if self.lr_batch_size else 1.0

    def to_dict(self) -> dict[str, Any]:
        """All settings, as JSON and YAML have them."""
        return dataclasses.asdict(self) | {"freeze": list(self.freeze), "milestones": list(self.milestones)}

    def to_yaml(self) -> str:
        """All settings; `load_recipe` reads the same recipe from it."""
        text = io.StringIO()
        OmegaConf.save(OmegaConf.create(self.to_dict()), text)
        return text.getvalue()


DEFAULT_RECIPES: dict[Mode, str] = {"scratch": "micro", "finetune": "finetune", "probe": "probe"}
"""By how a run starts: the name of its recipe."""


def recipe_names(task: str | None = None) -> tuple[str, ...]:
    """Recipes that are shipped: for classification, or those of one of `TASKS`, which begin with its name."""
    return tuple(name for name in _shipped() if _task(name) == task)


def _task(name: str) -> str | None:
    first = name.partition("_")[0]
    return first if first in TASKS else None


def _shipped() -> tuple[str, ...]:
    found = (Path(str(file)) for file in files("glocal.training").joinpath("recipes").iterdir())
    return tuple(sorted(path.stem for path in found if path.suffix == ".yaml"))


def _rises(numbers: Sequence[float]) -> bool:
    return all(low < high for low, high in pairwise(numbers)) or len(numbers) == 2


def load_recipe(source: Path | str, base: str | None = None, settings: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        source: a shipped name, see `recipe_names`, or a YAML file of settings.
        base: the recipe that a file's settings replace parts of; by default the plain defaults of `Recipe`.
        settings: ``key=value`` that replace settings in turn.

    Raises:
        GlocalError: for a file that cannot be read, an unknown setting, or a value of the wrong type or range.
    """
    layers = [] if base is None or str(source) in _shipped() else [_read_shipped(base)]
    if str(source) in _shipped():
        layers.append(_read_shipped(str(source)))
    else:
        layers.append(_read(source, _text(source)))
    for item in settings:
        name, separator, value = item.partition("=")
        if not (name and separator):
            raise GlocalError(f"setting: expected key=value, such as lr=0.001; got {item!r}")
        layers.append(_read(f"-s {item}", f"{name.strip()}: {value}"))
    merged = OmegaConf.structured(Recipe)
    for where, layer in layers:
        try:
            merged = OmegaConf.merge(merged, layer)
            OmegaConf.to_object(merged)
        except OmegaConfBaseException as error:
            raise GlocalError(f"recipe {where}: {str(error).splitlines()[0]}") from error
    recipe: Any = OmegaConf.to_object(merged)
    return recipe


def _text(path: Path | str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        bare = Path(path).suffix == "" and not Path(path).exists()
        hint = f"; shipped recipes: {', '.join(_shipped())}{nearest(str(path), _shipped())}" if bare else ""
        raise GlocalError(f"recipe {path}: cannot be read ({error}){hint}") from error


def _read_shipped(name: str) -> tuple[str, Any]:
    return _read(name, files("glocal.training").joinpath("recipes", f"{name}.yaml").read_text(encoding="utf-8"))


def _read(where: Path | str, text: str) -> tuple[str, Any]:
    """Settings of a YAML text, their names checked."""
    if "${" in text:  # OmegaConf would put another setting, or a variable of the environment, in its place
        raise GlocalError(f"recipe {where}: expected plain values, got ${{...}}")
    try:
        given = OmegaConf.create(text)
    except YAMLError as error:
        raise GlocalError(f"recipe {where}: not valid YAML ({' '.join(str(error).split())})") from error
    except OmegaConfBaseException as error:
        raise GlocalError(f"recipe {where}: {str(error).splitlines()[0]}") from error
    if not OmegaConf.is_dict(given):
        raise GlocalError(f"recipe {where}: expected lines of `setting: value`, such as `lr: 0.001`")
    known = [field.name for field in dataclasses.fields(Recipe)]
    for name in given:
        if name not in known:
            raise GlocalError(
                f"recipe {where}: unknown setting {name!r}{nearest(str(name), known)}; known: {', '.join(known)}"
            )
    return str(where), given
