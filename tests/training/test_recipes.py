"""The shipped recipes: what the papers and the authors' code say, typed here once more and held against the files."""

import random
import re
import shlex
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import pytest
import timm
from PIL import Image
from timm.data.auto_augment import rand_augment_transform

import glocal  # noqa: F401 - registers the models
from glocal.training import TrainConfig, load_recipe
from glocal.training.config import RECIPE_SETTINGS, recipe_names

DOC = Path(__file__).parents[2] / "docs" / "recipes.md"
OWN = {"micro", "finetune", "probe"}

# peak and last: learning rates of the whole batch, after scaling; warm: epochs of warm-up
NUMBERS = (
    "epochs", "batch_size", "peak", "last", "warm", "weight_decay", "clip_grad", "drop_path", "label_smoothing",
    "mixup", "cutmix", "random_erasing", "aug_repeats", "ema", "crop_pct", "color_jitter",
)  # fmt: skip
PAPERS = {
    # Touvron et al. 2021, Tab. 9; facebookresearch/deit main.py
    "deit": (300, 1024, 1e-3, 1e-5, 5, 0.05, 0, 0.1, 0.1, 0.8, 1, 0.25, 3, 0, 224 / 256, 0),
    # Yuan et al. 2021, §4.1; yitu-opensource/T2T-ViT main.py, README.md: 8 GPUs x 64
    "t2t_vit": (310, 8 * 64, 5e-4, 1e-5, 10, 0.05, 0, 0.1, 0.1, 0.8, 1, 0.25, 1, 0.99996, 0.9, 0),
    # Wu et al. 2021, §4.1; the rate by microsoft/CvT's settings: 2.5e-4 a GPU, 8 GPUs
    "cvt": (300, 2048, 8 * 2.5e-4, 1e-5, 5, 0.05, 0, 0.1, 0.1, 0.8, 1, 0.25, 1, 0, 0.875, 0),
    # linhezheng19/CAT src/config.py, configs/cat_tiny.yaml, get_started.md: 8 GPUs x 128
    "cat": (300, 8 * 128, 1e-3, 1e-5, 20, 0.05, 5, 0.1, 0.1, 0.8, 1, 0.25, 1, 0, 224 / 256, 0),
    # pengzhiliang/Conformer run.sh, main.py: 8 GPUs x 128
    "conformer": (300, 8 * 128, 1e-3, 1e-5, 5, 0.05, 0, 0.1, 0.1, 0.8, 1, 0.25, 3, 0, 224 / 256, 0),
    # He et al. 2016, §3.4; fb.resnet.torch opts.lua, train.lua, datasets/imagenet.lua
    "resnet": (90, 256, 0.1, 0, 0, 1e-4, 0, 0, 0, 0, 0, 0, 1, 0, 224 / 256, 0.4),
    # Srinivas et al. 2021, §4.8; 0.1 for 256 images and 5 epochs of warm-up: Goyal et al. 2017
    "botnet": (200, 4096, 1.6, 0, 5, 8e-5, 0, 0, 0.1, 0, 0, 0, 1, 0, 224 / 256, 0),
}
RAND9 = "rand-m9-mstd0.5-mmax9-inc1"
WORDS = {  # optimizer, schedule, auto_augment; the model of the command
    "deit": ("adamw", "cosine", RAND9, "glocal_vit_small_patch16_224"),
    "t2t_vit": ("adamw", "cosine", RAND9, "t2t_vit_14"),
    "cvt": ("adamw", "cosine", RAND9, "cvt_13"),
    "cat": ("adamw", "cosine", RAND9, "cat_tiny"),
    "conformer": ("adamw", "cosine", RAND9, "conformer_small_patch16"),
    "resnet": ("momentum", "step", "", "glocal_resnet50"),
    "botnet": ("momentum", "cosine", "rand-m10-n2", "botnet_s1_50"),
}


def text_of(name):
    return files("glocal.training").joinpath("recipes", f"{name}.yaml").read_text(encoding="utf-8")


def header(name):
    """What follows each ``# Key: `` of the comments above the settings, continued lines joined."""
    lines = []
    for line in text_of(name).splitlines():
        if not line.startswith("#"):
            break
        lines.append(line)
    found = re.findall(r"^# (\w+): (.*(?:\n#   .*)*)", "\n".join(lines), re.MULTILINE)
    return {key: re.sub(r"\n#\s+", " ", value).strip() for key, value in found}


def command(name):
    """Model and recipe of the command, and the settings that it changes."""
    words = shlex.split(header(name)["Command"])
    pairs = list(pairwise(words))
    given = dict(pairs)
    return words, given["--model"], given["--recipe"], [value for option, value in pairs if option == "-s"]


def rows(heading):
    """Cells of the table below a heading of the document."""
    part = DOC.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:1] == "|"]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def test_each_recipe_is_in_the_table_or_our_own():
    assert set(recipe_names()) == OWN | set(PAPERS)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_says_where_it_comes_from(name):
    said = header(name)
    for key in ("Paper", "Expected", "Hardware", "Command"):
        assert said.get(key), f"{name}.yaml: no line '# {key}: ...'"
    assert text_of(name).startswith(f"# {name}: ")


@pytest.mark.parametrize("name", recipe_names())
def test_the_command_names_a_model_and_this_recipe(name):
    words, model, recipe, settings = command(name)
    assert words[:2] == ["glocal", "train"]
    assert timm.is_model(model), model
    assert recipe == name
    load_recipe(name, settings=settings)


@pytest.mark.parametrize("name", PAPERS)
def test_a_papers_recipe_owns_up(name):
    said = header(name)
    assert "https://arxiv.org/abs/" in said["Paper"]
    assert "Source" in said
    assert "Not reproduced here" in said["Expected"]
    assert re.search(r"^# Deviations:\n# \* ", text_of(name), re.MULTILINE)


def resolved(recipe, key):
    """A setting as the papers give it."""
    match key:
        case "peak":
            return recipe.optimizer.lr * recipe.lr_scale
        case "last":
            return recipe.schedule.min_lr * recipe.lr_scale
        case "warm":
            return recipe.schedule.warmup * recipe.schedule.epochs
    return recipe.to_recipe()[key]


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("name", PAPERS)
def test_a_number_is_the_papers(name, key):
    said = dict(zip(NUMBERS, PAPERS[name], strict=True))[key]
    assert resolved(load_recipe(name), key) == pytest.approx(said, rel=1e-5)


@pytest.mark.parametrize("name", PAPERS)
def test_what_is_no_number_is_the_papers(name):
    recipe = load_recipe(name)
    assert (recipe.optimizer.optimizer, recipe.schedule.schedule, recipe.data.auto_augment, command(name)[1]) == WORDS[
        name
    ]
    assert (recipe.data.augment, recipe.data.crop_scale, recipe.data.flip) == ("randaugment", 0.08, True)
    assert (recipe.data.image_size, recipe.checkpoint.evaluate_every_epochs, recipe.optimizer.momentum) == (224, 1, 0.9)
    assert (recipe.optimizer.layer_decay, recipe.model.freeze, recipe.loss.class_balance) == (1, (), 0)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("micro", {"epochs": 5}),
        ("finetune", {"epochs": 30, "lr": 5e-4, "layer_decay": 0.75}),
        (
            "probe",
            {"epochs": 30, "lr": 1e-2, "weight_decay": 0, "label_smoothing": 0, "flip": False, "freeze": ("backbone",)},
        ),
    ],
)
def test_our_own_recipes_change_these_defaults_alone(name, changed):
    assert load_recipe(name) == TrainConfig.of(**changed)


@pytest.mark.parametrize("name", PAPERS)
def test_a_papers_recipe_leaves_nothing_that_matters_to_a_default(name):
    left = set(RECIPE_SETTINGS) - set(re.findall(r"^(\w+):", text_of(name), re.MULTILINE))
    assert left <= {
        "grad_accum_steps", "checkpoint_every_steps", "class_balance", "color_jitter", "freeze", "layer_decay",
        "log_every_steps", "milestones", "momentum", "nan_skips", "poly_power", "sync_batchnorm",
    }  # fmt: skip


@pytest.mark.parametrize("policy", sorted({load_recipe(name).data.auto_augment for name in recipe_names()} - {""}))
def test_a_policy_draws_no_magnitude_that_pillow_refuses(policy):
    image = Image.effect_noise((8, 8), 50).convert("RGB")
    for op in rand_augment_transform(policy, {"translate_const": 2, "img_mean": (0, 0, 0)}).ops:
        bound = op.magnitude_max or 10
        spread, op.magnitude_std, op.prob = 5 * op.magnitude_std, 0, 1.0
        for magnitude in {max(0, op.magnitude - spread), op.magnitude, min(bound, op.magnitude + spread)}:
            op.magnitude = magnitude
            random.seed(0)
            op(image)


def test_the_same_policy_without_its_bound_is_refused():
    with pytest.raises(ValueError, match="bits"):
        test_a_policy_draws_no_magnitude_that_pillow_refuses("rand-m9-mstd0.5-inc1")


def test_the_document_lists_each_setting_with_its_default():
    given = {row["setting"].strip("`"): row["default"].strip("`") for row in rows("Settings")}
    assert given == {name: _plain(value) for name, value in TrainConfig().to_recipe().items()}
    assert all(row["what it does"] for row in rows("Settings"))


def test_the_document_sets_the_recipes_side_by_side():
    table = {row["recipe"].strip("`"): row for row in rows("Side by side")}
    assert set(table) == set(recipe_names())
    columns = {
        "epochs": "epochs", "batch": "batch_size", "peak lr": "peak", "weight decay": "weight_decay", "warm-up": "warm",
        "EMA": "ema",
    }  # fmt: skip
    for name, row in table.items():
        recipe = load_recipe(name)
        for column, key in columns.items():
            assert float(row[column]) == pytest.approx(resolved(recipe, key), rel=1e-5), (name, column)
        assert name in OWN or re.search(r"https://arxiv.org/abs/[\d.]+\d", header(name)["Paper"])[0] in row["paper"]


def _plain(default):
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, list):
        return "[]"
    return default if isinstance(default, str) else f"{default:g}"
