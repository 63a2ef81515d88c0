"""How every model of a comparison is trained: one recipe for all, from timm's parts."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from timm.optim import list_optimizers
from yaml import YAMLError  # type: ignore[import-untyped]

from glocal.errors import GlocalError, nearest

Mode = Literal["scratch", "finetune", "probe"]
AUGMENTATIONS = ("none", "light", "randaugment")


@dataclass(frozen=True)
class Recipe:
    """Settings of one training run; the budget says how long it lasts.

    Attributes:
        batch_size: images in a step. An epoch is cut into equal batches of at most this size, so none is left out.
        optimizer: a name of ``timm.optim``.
        lr: peak learning rate.
        weight_decay: not applied to biases, norms and what a model lists in ``no_weight_decay``.
        warmup: share of the budget over which the learning rate rises linearly from 0; a cosine to ``min_lr`` follows.
        min_lr: learning rate at the end of the budget.
        label_smoothing: probability spread over all classes.
        flip: mirror images left to right at random; switch off where left and right differ, as in digits.
        augment: what else is done to training images: ``none``; ``light``: shift by up to 1/8 of the side, borders
            reflected; ``randaugment``: random resized crop and timm's RandAugment at magnitude 9. With a budget of a
            few epochs each of them costs more accuracy than it brings; with tens of epochs they pay.
        mixup: alpha of mixup, 0 for none.
        cutmix: alpha of CutMix, 0 for none.
        clip_grad: largest norm of the gradient, 0 for no limit.
        layer_decay: factor on the learning rate from each layer to the one before it; 1 for none.
        drop_path: rate of stochastic depth, 0 for none.
    """

    batch_size: int = 32
    optimizer: str = "adamw"
    lr: float = 3e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    min_lr: float = 0.0
    label_smoothing: float = 0.1
    flip: bool = True
    augment: str = "none"
    mixup: float = 0.0
    cutmix: float = 0.0
    clip_grad: float = 1.0
    layer_decay: float = 1.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        for name, holds, expected in (
            ("batch_size", self.batch_size >= 2, "at least 2"),
            ("lr", self.lr > 0, "above 0"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("warmup", 0 <= self.warmup < 1, "a share of the budget, from 0 to below 1"),
            ("min_lr", 0 <= self.min_lr <= self.lr, "from 0 to lr"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "from 0 to below 1"),
            ("augment", self.augment in AUGMENTATIONS, f"one of {', '.join(AUGMENTATIONS)}"),
            ("mixup", self.mixup >= 0, "0 or more"),
            ("cutmix", self.cutmix >= 0, "0 or more"),
            ("clip_grad", self.clip_grad >= 0, "0 or more"),
            ("layer_decay", 0 < self.layer_decay <= 1, "above 0, at most 1"),
            ("drop_path", 0 <= self.drop_path < 1, "from 0 to below 1"),
        ):
            if not holds:
                raise GlocalError(f"recipe: {name} must be {expected}, got {getattr(self, name)!r}")
        if self.optimizer not in list_optimizers():
            hint = nearest(self.optimizer, map(str, list_optimizers()))
            raise GlocalError(f"recipe: optimizer must be one of timm's, got {self.optimizer!r}{hint}")


DEFAULT_RECIPES: dict[Mode, Recipe] = {
    "scratch": Recipe(),
    # Layer decay and learning rate in the range of the BEiT and MAE fine-tuning recipes, for far fewer images.
    "finetune": Recipe(lr=5e-4, layer_decay=0.75),
    # Features are computed once, so no image is augmented; the linear head needs little else.
    "probe": Recipe(lr=1e-2, weight_decay=0.0, label_smoothing=0.0, flip=False),
}


def load_recipe(path: Path | str, mode: Mode = "scratch") -> Recipe:
    """Read a YAML file of recipe settings; those it leaves out keep the mode's default.

    Raises:
        GlocalError: for a file that cannot be read, an unknown setting, or a value of the wrong type or range.
    """
    try:
        given = OmegaConf.load(path)
        if not OmegaConf.is_dict(given):
            raise GlocalError(f"recipe {path}: expected lines of `setting: value`, such as `lr: 0.001`")
        _check_names(path, given)
        merged = OmegaConf.merge(OmegaConf.structured(DEFAULT_RECIPES[mode]), given)
        recipe: Any = OmegaConf.to_object(merged)
    except (OSError, UnicodeDecodeError) as error:
        raise GlocalError(f"recipe {path}: cannot be read ({error})") from error
    except YAMLError as error:
        raise GlocalError(f"recipe {path}: not valid YAML ({' '.join(str(error).split())})") from error
    except OmegaConfBaseException as error:
        raise GlocalError(f"recipe {path}: {str(error).splitlines()[0]}") from error
    return recipe


def _check_names(path: Path | str, given: Any) -> None:
    known = [field.name for field in dataclasses.fields(Recipe)]
    for name in given:
        if name not in known:
            raise GlocalError(
                f"recipe {path}: unknown setting {name!r}{nearest(str(name), known)}; known: {', '.join(known)}"
            )
