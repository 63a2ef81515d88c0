"""docs/results/tasks.md: its figures are of the generated set as it is now, and its words are what the figures say."""

import json
import re

import pytest
from benchmarks import tasks as benchmark

from glocal.data.pasted import items_on_photos
from glocal.training import load_recipe


@pytest.fixture(scope="module")
def committed():
    return json.loads(benchmark.OUT.read_text())


def test_the_figures_are_of_this_set_and_these_runs(committed):
    assert committed["fingerprint"] == items_on_photos().fingerprint
    assert set(committed["runs"]) == set(benchmark.RUNS)
    assert benchmark.page(committed) == benchmark.OUT.with_suffix(".md").read_text()


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_runs_are_whole(committed, task):
    recipe = load_recipe(f"{task}_micro")
    for name, words in benchmark.RUNS.items():
        if words[0] == task:
            found = committed["runs"][name]
            assert found["epochs"] == pytest.approx(recipe.schedule.epochs)
            assert [row["epoch"] for row in found["curve"]] == pytest.approx(range(1, int(recipe.schedule.epochs) + 1))


@pytest.mark.parametrize(
    ("recipe", "run", "score"),
    [
        ("detect_micro", "mask_rcnn, transfer", "box AP50 {val_map50:.2f}, mask AP50 {val_mask_map50:.2f}"),
        ("segment_micro", "semantic_fpn, transfer", "mIoU {val_miou:.2f}"),
    ],
)
def test_recipes_expect_what_was_reached(committed, recipe, run, score):
    text = (benchmark.OUT.parents[2] / "src/glocal/training/recipes" / f"{recipe}.yaml").read_text()
    expected = re.sub(r"\n#\s+", " ", text).partition("Expected: ")[2].partition("HardwareConfig:")[0]
    assert score.format(**committed["runs"][run]["curve"][-1]) in expected
