"""Which settings of a recipe mean something for a task; the others are refused where they are set."""

from glocal.errors import GlocalError
from glocal.training.config import TrainConfig, load_recipe
from glocal.training.request import Request

DEFAULT_RECIPES = {"detection": "detect_micro", "segmentation": "segment_micro"}
"""By task: the recipe where none is asked for, and what a file of settings replaces parts of."""
MEANINGLESS = (
    "label_smoothing", "class_balance", "auto_augment", "crop_scale", "color_jitter", "random_erasing", "crop_pct",
    "mixup", "cutmix", "layer_decay",
)  # fmt: skip
AUGMENTATIONS = ("none", "light")


def check_request(task: str, request: Request) -> None:
    """Refuse what a task cannot do.

    Raises:
        GlocalError: naming the setting or option.
    """
    recipe, usual = request.recipe, load_recipe(DEFAULT_RECIPES[task])
    for name in MEANINGLESS:
        value, default = recipe.to_recipe()[name], usual.to_recipe()[name]
        if value not in (default, TrainConfig().to_recipe()[name]):
            raise GlocalError(f"recipe: {name} has no meaning for {task}, got {value!r}; leave it at {default!r}")
    if recipe.data.augment not in AUGMENTATIONS:
        raise GlocalError(
            f"recipe: augment must be one of {', '.join(AUGMENTATIONS)} for {task}, got {recipe.data.augment!r}"
        )
    if request.hardware.is_sharded:
        raise GlocalError(f"strategy: {task} runs with ddp alone, got fsdp: parts of its heads are called by name")
