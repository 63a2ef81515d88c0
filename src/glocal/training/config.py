"""Training settings: `TrainConfig`, nested frozen dataclasses, and the recipes, YAML files that name their paper.

A recipe is flat: a line for each setting, whatever part it belongs to. `load_recipe` reads one, `TrainConfig.of` takes
the same settings as keywords, and `print(config)` shows all parts.
"""

import dataclasses
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from timm.optim import list_optimizers
from yaml import YAMLError  # type: ignore[import-untyped]

from glocal.errors import GlocalError, nearest
from glocal.models.creation import Weights, default_image_size
from glocal.training.checks import check_types, check_values
from glocal.training.hardware import HardwareConfig

Mode = Literal["scratch", "finetune", "probe"]
AUGMENTATIONS = ("none", "light", "randaugment")
SCHEDULES = ("cosine", "step", "poly")
TASKS = ("detect", "segment")
_RECIPES = Path(__file__).with_name("recipes")
RENAMED = {"repeats": "aug_repeats", "accumulate": "grad_accum_steps"}
"""Settings by the name they had until 0.1; it is understood for one version more."""
_FRACTION, _RATE = "from 0 to below 1", "0 or more"


@dataclass(frozen=True)
class ModelInit:
    """The model and its initial weights.

    Attributes:
        name: a name that timm knows, maybe with keywords: ``cvt_micro:kv_stride=1``.
        weights: a checkpoint, ``pretrained`` for timm's own, or None for random ones.
        drop_path: rate of stochastic depth, 0 for none.
        freeze: ``backbone`` (all but the classifier), or names of modules or parameters that are not trained;
            ``*`` stands for anything.
    """

    name: str = ""
    weights: Weights = None
    drop_path: float = 0.0
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_types(self)
        object.__setattr__(self, "freeze", tuple(self.freeze))
        if not (self.weights in (None, "pretrained") or isinstance(self.weights, Path)):
            raise GlocalError(
                f"weights: expected 'pretrained', None or the path of a file, such as Path('model.pth'); got "
                f"{self.weights!r}"
            )
        check_values(self, ("drop_path", 0 <= self.drop_path < 1, _FRACTION))


@dataclass(frozen=True)
class HeadConfig:
    """The detector or segmenter on a backbone.

    Attributes:
        head: a kind of `glocal.heads.create_detector` or `create_segmenter`.
        preset: ``small``, ``coco`` of a detector, ``ade20k`` of a segmenter, or empty: small for images of up to 256
            pixels, else the published one.
        frozen_norm: whether the statistics of the backbone's BatchNorms do not move.
        frozen_stages: stages of the backbone, its stem first, that do not train.
        options: keywords of the head, see `glocal.heads.settings.OPTIONS`.
    """

    head: str
    preset: str = ""
    frozen_norm: bool = False
    frozen_stages: int = 0
    options: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)
        check_values(self, ("frozen_stages", self.frozen_stages >= 0, _RATE))


@dataclass(frozen=True)
class DataConfig:
    """Images of a step and their augmentation.

    Attributes:
        image_size: side in pixels; 0 for the model's own default.
        batch_size: images in an optimizer step, over all devices. An epoch is split into equal batches of at most this
            size, so no image is dropped.
        flip: mirror images left to right at random; switch off where left and right differ, as in digits.
        augment: further augmentation: ``none``; ``light``: shift by up to 1/8 of the side, borders reflected;
            ``randaugment``: random resized crop and ``auto_augment``. With a budget of a few epochs each of them costs
            more accuracy than it brings; with tens of epochs they pay.
        auto_augment: of ``randaugment``: a policy in timm's notation; empty for a crop and a flip alone. Policies
            with ``inc1`` need ``mmax9``: above 9 timm posterises to 0 bits, which Pillow 13 refuses.
        crop_scale: of ``randaugment``: smallest fraction of the area of an image that a crop has.
        color_jitter: of ``randaugment``: strength of brightness, contrast and saturation, without auto_augment.
        random_erasing: probability of erasing a rectangle of an image with noise (Zhong et al. 2020).
        aug_repeats: how often an epoch shows an image, each time augmented anew, among as many times fewer images
            (Hoffer et al. 2020).
        crop_pct: validation images are resized to 1/crop_pct of the size and cropped to it.
        num_workers: data-loading workers; None: one per processor if images are decoded.
        on_error: on unreadable images: ``stop``, or ``skip`` and list them.
    """

    image_size: int = 0
    batch_size: int = 32
    flip: bool = True
    augment: str = "none"
    auto_augment: str = "rand-m9-mstd0.5-mmax9-inc1"
    crop_scale: float = 0.08
    color_jitter: float = 0.0
    random_erasing: float = 0.0
    aug_repeats: int = 1
    crop_pct: float = 1.0
    num_workers: int | None = None
    on_error: Literal["stop", "skip"] = "stop"

    def __post_init__(self) -> None:
        check_types(self)
        check_values(
            self,
            ("image_size", self.image_size == 0 or 8 <= self.image_size <= 1024, "8 to 1024, or 0"),
            ("batch_size", self.batch_size >= 2, "at least 2"),
            ("augment", self.augment in AUGMENTATIONS, f"one of {', '.join(AUGMENTATIONS)}"),
            ("crop_scale", 0 < self.crop_scale <= 1, "above 0, at most 1"),
            ("color_jitter", self.color_jitter >= 0, _RATE),
            ("random_erasing", 0 <= self.random_erasing <= 1, "from 0 to 1"),
            ("aug_repeats", self.aug_repeats >= 1, "at least 1"),
            ("crop_pct", 0 < self.crop_pct <= 1, "above 0, at most 1"),
            ("num_workers", self.num_workers is None or self.num_workers >= 0, f"{_RATE}, or None"),
        )


@dataclass(frozen=True)
class LossConfig:
    """The loss of a classifier.

    Attributes:
        label_smoothing: probability spread over all classes.
        class_balance: 0 for none; weights the loss of a class by (its fraction of the images) ** -class_balance, so 1
            makes all classes weigh the same.
        mixup: alpha of mixup, 0 for none.
        cutmix: alpha of CutMix, 0 for none.
    """

    label_smoothing: float = 0.1
    class_balance: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        check_types(self)
        check_values(
            self,
            ("label_smoothing", 0 <= self.label_smoothing < 1, _FRACTION),
            ("class_balance", 0 <= self.class_balance <= 1, "from 0 to 1"),
            ("mixup", self.mixup >= 0, _RATE),
            ("cutmix", self.cutmix >= 0, _RATE),
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer step.

    Attributes:
        optimizer: a name of ``timm.optim``.
        lr: peak learning rate.
        lr_batch_size: the batch size that ``lr`` is for; for another one it is scaled linearly (Goyal et al. 2017).
            0: ``lr`` is for ``batch_size``.
        weight_decay: not applied to biases, norms and what a model lists in ``no_weight_decay``.
        momentum: of SGD.
        layer_decay: factor on the learning rate from each layer to the one before it; 1 for none.
        clip_grad: largest norm of the gradient, 0 for no limit.
        grad_accum_steps: micro-batches per optimizer step, one after the other, if a whole batch does not fit into
            memory.
        ema: decay of the exponential moving average of the weights, which is evaluated and saved; 0 for none.
        nan_skips: number of steps with a non-finite loss or gradient to skip before the run stops; 0 stops at the
            first.
    """

    optimizer: str = "adamw"
    lr: float = 3e-3
    lr_batch_size: int = 0
    weight_decay: float = 0.05
    momentum: float = 0.9
    layer_decay: float = 1.0
    clip_grad: float = 1.0
    grad_accum_steps: int = 1
    ema: float = 0.0
    nan_skips: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        check_values(
            self,
            ("lr", self.lr > 0, "above 0"),
            ("lr_batch_size", self.lr_batch_size >= 0, _RATE),
            ("weight_decay", self.weight_decay >= 0, _RATE),
            ("momentum", 0 <= self.momentum < 1, _FRACTION),
            ("layer_decay", 0 < self.layer_decay <= 1, "above 0, at most 1"),
            ("clip_grad", self.clip_grad >= 0, _RATE),
            ("ema", 0 <= self.ema < 1, _FRACTION),
            ("nan_skips", self.nan_skips >= 0, _RATE),
        )
        if self.optimizer not in list_optimizers():
            hint = nearest(self.optimizer, map(str, list_optimizers()))
            raise GlocalError(f"recipe: optimizer must be one of timm's, got {self.optimizer!r}{hint}")


@dataclass(frozen=True)
class ScheduleConfig:
    """Length of training, and the learning-rate schedule.

    Attributes:
        epochs: passes over the training set; a comparison's budget stands in its place.
        schedule: ``cosine`` to ``min_lr``; ``step``: a tenth after each of the milestones; ``poly``: to ``min_lr`` as
            (1 - fraction of the budget) ** poly_power.
        milestones: fractions of the budget; by default each third of the budget after the warm-up.
        poly_power: of ``poly``; 1 is a straight line.
        warmup: fraction of the budget over which the learning rate rises linearly from 0; the schedule follows.
        min_lr: learning rate at the end of the cosine or polynomial.
    """

    epochs: float = 30.0
    schedule: str = "cosine"
    milestones: tuple[float, ...] = ()
    poly_power: float = 0.9
    warmup: float = 0.1
    min_lr: float = 0.0

    def __post_init__(self) -> None:
        check_types(self)
        object.__setattr__(self, "milestones", tuple(self.milestones))
        rising = all(low < high for low, high in pairwise((self.warmup, *self.milestones, 1)))
        check_values(
            self,
            ("epochs", 0 < self.epochs < 1e9, "above 0"),
            ("schedule", self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
            ("warmup", 0 <= self.warmup < 1, f"a fraction of the budget, {_FRACTION}"),
            ("milestones", rising, "increasing fractions of the budget between the warmup and 1"),
            ("poly_power", 0 < self.poly_power <= 10, "above 0, at most 10"),
        )


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints and logs of a run, and whether it is resumed.

    Attributes:
        checkpoint_every_steps: steps between checkpoints, which are also written after each evaluation; 0: only after
            evaluations.
        log_every_steps: steps between rows of metrics.csv.
        evaluate_every_epochs: on the validation set, and at the end.
        tensorboard: write events for TensorBoard too.
        resume: continue the run in the folder; a folder without a run is begun.
        allow_changed: resume although the data or the settings are others than before.
    """

    checkpoint_every_steps: int = 0
    log_every_steps: int = 50
    evaluate_every_epochs: float = 1.0
    tensorboard: bool = False
    resume: bool = False
    allow_changed: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        check_values(
            self,
            ("checkpoint_every_steps", self.checkpoint_every_steps >= 0, _RATE),
            ("log_every_steps", self.log_every_steps >= 1, "at least 1"),
            ("evaluate_every_epochs", self.evaluate_every_epochs > 0, "above 0"),
        )


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a training run.

    Attributes:
        model: name, weights, frozen modules.
        data: image size, batch size, augmentation.
        loss: label smoothing, class balance, mixing.
        optimizer: optimizer, learning rate, clipping, EMA.
        schedule: epochs and the learning rate over them.
        checkpoint: checkpoints, rows of metrics, evaluations, resuming.
        hardware: devices, processes, precision.
        head: the detector or segmenter; None for a classifier.
        seed: of everything random.
        command: what to call this in the results.
    """

    model: ModelInit = ModelInit()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    hardware: HardwareConfig = HardwareConfig()  # noqa: RUF009 - immutable
    head: HeadConfig | None = None
    seed: int = 0
    command: str = ""

    def __post_init__(self) -> None:
        check_types(self)
        check_values(self, ("seed", self.seed >= 0, _RATE))
        accum = self.optimizer.grad_accum_steps
        check_values(self.schedule, ("min_lr", 0 <= self.schedule.min_lr <= self.optimizer.lr, "from 0 to lr"))
        check_values(self.optimizer, ("grad_accum_steps", 1 <= accum <= self.data.batch_size, "from 1 to batch_size"))

    @classmethod
    def of(cls, **settings: Any) -> "TrainConfig":
        """The defaults with some settings replaced, by name in any part: ``TrainConfig.of(lr=1e-3, ema=0.9)``."""
        return cls().replace(**settings)

    def replace(self, **settings: Any) -> "TrainConfig":
        """A copy with some settings replaced, by name in any part."""
        by_part: dict[str, dict[str, Any]] = {}
        for name, value in settings.items():
            by_part.setdefault(PART_OF.get(name, ""), {})[name] = value
        own = by_part.pop("", {})
        parts = {part: dataclasses.replace(getattr(self, part), **given) for part, given in by_part.items()}
        return dataclasses.replace(self, **own, **parts)

    @property
    def image_size(self) -> int:
        """Side in pixels: the recipe's, or else the model's own."""
        return self.data.image_size or default_image_size(self.model.name)

    @property
    def lr_scale(self) -> float:
        """Factor on the learning rates for this batch size."""
        of = self.optimizer.lr_batch_size
        return self.data.batch_size / of if of else 1.0

    def to_recipe(self) -> dict[str, Any]:
        """The settings of a recipe, flat, as plain values for JSON and YAML."""
        values = {name: getattr(getattr(self, PART_OF[name]), name) for name in RECIPE_SETTINGS}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def to_yaml(self) -> str:
        """The recipe; `load_recipe` reads the same settings from it."""
        text = io.StringIO()
        OmegaConf.save(OmegaConf.create(self.to_recipe()), text)
        return text.getvalue()

    def __str__(self) -> str:
        nested = dataclasses.asdict(self)
        nested["model"]["weights"] = None if self.model.weights is None else str(self.model.weights)
        return OmegaConf.to_yaml(OmegaConf.create(nested)).rstrip()


_PARTS = {part.name: part.type for part in fields(TrainConfig) if dataclasses.is_dataclass(part.type)}
PART_OF = {setting.name: part for part, cls in _PARTS.items() for setting in fields(cls)}
"""By a setting's name: the part of `TrainConfig` that has it."""
_OF_COMMAND = {"name", "weights", "num_workers", "on_error", "tensorboard", "resume", "allow_changed"}
_OF_COMMAND |= {setting.name for setting in fields(HardwareConfig)} - {"sync_batchnorm"}
RECIPE_SETTINGS = tuple(name for name in PART_OF if name not in _OF_COMMAND)
"""What a recipe may set; the rest is said with each run."""
_SETTINGS = dataclasses.make_dataclass(
    "Settings",
    [
        (setting.name, setting.type, field(default=setting.default))
        for cls in _PARTS.values()
        for setting in fields(cls)
        if setting.name in RECIPE_SETTINGS
    ],
    frozen=True,
)  # a recipe as OmegaConf takes it, to convert and check types

DEFAULT_RECIPES: dict[str, str] = {
    "scratch": "micro", "finetune": "finetune", "probe": "probe",
    "detection": "detect_micro", "segmentation": "segment_micro",
}  # fmt: skip
"""Of a classifier by how its run starts, of other tasks by name."""


def recipe_names(task: str | None = None) -> tuple[str, ...]:
    """Included recipes: for classification, or for one of `TASKS`, whose names begin with its name."""
    first = {name: name.partition("_")[0] for name in _shipped()}
    return tuple(name for name in first if (first[name] if first[name] in TASKS else None) == task)


def load_recipe(source: Path | str, base: str | None = None, settings: Sequence[str] = ()) -> TrainConfig:
    """Read a recipe.

    Args:
        source: a shipped name, see `recipe_names`, or a YAML file of settings.
        base: the recipe that a file's settings replace parts of; by default the plain defaults of `TrainConfig`.
        settings: ``key=value`` that replace settings in turn.

    Raises:
        GlocalError: for an unreadable file, an unknown setting, or a value of the wrong type or range.
    """
    texts = [source] if base is None or str(source) in _shipped() else [base, source]
    layers = [_read(where, _text(where)) for where in texts]
    for item in settings:
        name, separator, value = item.partition("=")
        if not (name and separator):
            raise GlocalError(f"setting: expected key=value, such as lr=0.001; got {item!r}")
        layers.append(_read(f"-s {item}", f"{name.strip()}: {value}"))
    merged, config = OmegaConf.structured(_SETTINGS), TrainConfig()
    for where, layer in layers:
        try:
            merged = OmegaConf.merge(merged, layer)
            plain: Any = OmegaConf.to_object(merged)
        except OmegaConfBaseException as error:
            raise GlocalError(f"recipe {where}: {str(error).splitlines()[0]}") from error
        config = TrainConfig.of(**{name: getattr(plain, name) for name in RECIPE_SETTINGS})
    return config


def renamed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a file of an older version, by their current names."""
    return {RENAMED.get(name, name): value for name, value in settings.items()}


def upgraded(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The plan of a run or a comparison, with the current names of its settings."""
    return {**plan, "recipe": renamed(plan["recipe"])} if "recipe" in plan else dict(plan)


def _shipped() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in _RECIPES.glob("*.yaml")))


def _text(path: Path | str) -> str:
    if str(path) in _shipped():
        path = _RECIPES / f"{path}.yaml"
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        bare = Path(path).suffix == "" and not Path(path).exists()
        hint = f"; shipped recipes: {', '.join(_shipped())}{nearest(str(path), _shipped())}" if bare else ""
        raise GlocalError(f"recipe {path}: cannot be read ({error}){hint}") from error


def _read(where: Path | str, text: str) -> tuple[str, Any]:
    """Settings of a YAML text, with checked names."""
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
    for old in RENAMED:
        if old not in given:
            continue
        warnings.warn(f"recipe {where}: {old} is called {RENAMED[old]} now", FutureWarning, stacklevel=3)
        given = OmegaConf.create(renamed({str(name): value for name, value in given.items()}))
    for name in given:
        if name not in RECIPE_SETTINGS:
            raise GlocalError(
                f"recipe {where}: unknown setting {name!r}{nearest(str(name), RECIPE_SETTINGS)}; known: "
                f"{', '.join(RECIPE_SETTINGS)}"
            )
    return str(where), given
