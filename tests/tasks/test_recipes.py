"""The recipes of detection and segmentation: what they say of themselves, and their learning rates along the way."""

import re
import shlex
from importlib.resources import files
from itertools import pairwise

import pytest
import timm
import torch

import glocal  # noqa: F401  (registers the models)
from glocal.errors import GlocalError
from glocal.heads.settings import HEADS
from glocal.tasks.heads import model_config
from glocal.training import DEFAULT_RECIPES, HeadConfig, TrainConfig, load_recipe, recipe_names
from glocal.training.schedule import LRSchedule

TASKS = {"detect": "detection", "segment": "segmentation"}
NAMES = [(task, name) for task in TASKS for name in recipe_names(task)]


def rate_at(recipe, share):
    """The learning rate at a fraction of the budget."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=recipe.optimizer.lr * recipe.lr_scale)
    LRSchedule(optimizer, recipe).step(share)
    return optimizer.param_groups[0]["lr"]


def test_names_by_task():
    assert recipe_names("detect") == ("detect_1x", "detect_3x", "detect_micro")
    assert recipe_names("segment") == ("segment_160k", "segment_80k", "segment_micro")
    assert not set(recipe_names()) & {name for _, name in NAMES}
    assert set(DEFAULT_RECIPES.values()) <= {name for _, name in NAMES} | set(recipe_names())


@pytest.mark.parametrize(("task", "name"), NAMES)
def test_a_recipe_says_where_it_comes_from(task, name):
    text = files("glocal.training").joinpath("recipes", f"{name}.yaml").read_text(encoding="utf-8")
    found = re.findall(r"^# (\w+): (.*(?:\n#   .*)*)", text, re.MULTILINE)
    said = {key: re.sub(r"\n#\s+", " ", value).strip() for key, value in found}
    for key in ("Paper", "Expected", "Hardware", "Command"):
        assert said.get(key), f"{name}.yaml: no line '# {key}: ...'"
    words = shlex.split(said["Command"])
    given = dict(pairwise(words))
    assert words[:3] == ["glocal", task, "train"]
    assert timm.is_model(given["--model"])
    assert given["--recipe"] == name
    head = given.get("--detector", given.get("--segmenter", {"detect": "fcos", "segment": "upernet"}[task]))
    assert head in HEADS[TASKS[task]]
    if "micro" not in name:
        assert "https://arxiv.org/abs/" in said["Paper"]
        assert "Not reproduced here" in said["Expected"]
        assert re.search(r"^# Deviations:\n# \* ", text, re.MULTILINE)
    config = load_recipe(name).replace(name=given["--model"], head=HeadConfig(head))
    preset = model_config(TASKS[task], config, classes=("a", "b")).preset
    assert preset == ("small" if "micro" in name else {"detect": "coco", "segment": "ade20k"}[task])


def test_one_x_falls_after_epochs_8_and_11():
    recipe = load_recipe("detect_1x")
    rates = [rate_at(recipe, (epoch + 0.5) / 12) for epoch in range(12)]
    assert rates == pytest.approx([0.02] * 8 + [0.002] * 3 + [0.0002])
    assert rate_at(recipe, 250 / 87960) == pytest.approx(0.01, rel=0.01), "in the middle of the warm-up"
    assert (
        recipe.data.batch_size,
        recipe.optimizer.optimizer,
        recipe.optimizer.weight_decay,
        recipe.data.image_size,
    ) == (16, "momentum", 1e-4, 800)


def test_three_x_falls_after_epochs_27_and_33():
    rates = [rate_at(load_recipe("detect_3x"), (epoch + 0.5) / 36) for epoch in range(36)]
    assert rates == pytest.approx([1e-4] * 27 + [1e-5] * 6 + [1e-6] * 3)


def test_polynomials():
    recipe = load_recipe("segment_80k")
    for share in (0.0, 0.25, 0.5, 0.9):
        assert rate_at(recipe, share) == pytest.approx(1e-4 * (1 - share) ** 0.9, rel=1e-3)
    recipe = load_recipe("segment_160k")
    warm = 1500 / 160_000
    assert rate_at(recipe, 0.5) == pytest.approx(6e-5 * (1 - (0.5 - warm) / (1 - warm)), rel=1e-3)
    assert recipe.schedule.epochs * 20_210 / 16 == pytest.approx(160_000, rel=1e-3)


def test_milestones_count_from_the_start_of_the_warm_up():
    recipe = TrainConfig.of(schedule="step", lr=1.0, warmup=0.1, milestones=(0.5, 0.9))
    assert [rate_at(recipe, share) for share in (0.49, 0.51, 0.89, 0.91)] == pytest.approx([1, 0.1, 0.1, 0.01])


def test_thirds_are_the_default_of_steps():
    recipe = TrainConfig.of(schedule="step", lr=1.0, warmup=0.1)
    thirds = [rate_at(recipe, 0.1 + 0.9 * share) for share in (0.3, 0.36, 0.6, 0.7)]
    assert thirds == pytest.approx([1, 0.1, 0.1, 0.01])
    for wrong in ((0.5, 0.4), (0.05,), (1.0,), (0.5, 0.5)):
        with pytest.raises(GlocalError, match="milestones must be increasing fractions of the budget"):
            TrainConfig.of(schedule="step", warmup=0.1, milestones=wrong)
