"""What is said of the probes, on the committed figures; and in small, with models that lack something on purpose."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import probes as benchmark
from safetensors.numpy import load_file

from glocal.comparison import compare, make_settings
from glocal.data import load_data
from glocal.data.probes import PROBES, load_probe
from glocal.training.config import upgraded

BAG, SHUFFLED = "bag of patches", "resnet_micro, pixels shuffled"


@pytest.fixture(scope="module")
def committed():
    return json.loads(benchmark.RESULT.with_suffix(".json").read_text())


@pytest.fixture(scope="module")
def found(committed):
    return {(row["probe"], row["model"]): row for row in committed["summary"]}


def solves(row):
    return row["top1_ci"][0] > 0.95


def guesses(row):
    return row["top1_ci"][0] <= row["chance"] + 0.02 and row["top1_mean"] < row["chance"] + 0.03


def of_seeds(committed, model):
    """Top-1 of a model on pathfinder, from the lowest."""
    known = ("pathfinder", model)
    return sorted(run["top1"] for run in committed["runs"] if (run["probe"], run["model"]) == known)


def test_the_figures_are_of_these_images_and_this_benchmark(committed, found):
    assert upgraded(committed["plan"]) == json.loads(json.dumps(benchmark.plan()))
    assert set(found) == {(name, model) for name in PROBES for model in benchmark.MODELS}
    assert all(row["seeds"] == len(benchmark.SEEDS) for row in found.values())
    again = benchmark.summary(committed["runs"])
    assert json.loads(json.dumps(again)) == committed["summary"]
    assert benchmark.page(committed) == benchmark.RESULT.with_suffix(".md").read_text()


def test_a_cnn_with_shuffled_pixels_fails_pathfinder_and_the_cnn_does_not(committed, found):
    assert guesses(found["pathfinder", SHUFFLED])
    assert min(of_seeds(committed, "resnet_micro")) > 0.85  # learned from every seed, if not solved from every one
    assert solves(found["pathfinder", "botnet_micro"])


def test_a_bag_of_patches_solves_texture_and_no_arrangement(found):
    assert solves(found["texture", BAG])
    assert guesses(found["arrangement", BAG])
    assert solves(found["arrangement", "resnet_micro"])
    half = found["mix", BAG]["top1_mean"]
    assert half == pytest.approx(0.5, abs=0.03)  # the texture, and not the layout


def test_the_essay_has_these_figures(committed, found):
    essay = (Path(__file__).parents[2] / "docs/local-or-global.md").read_text()
    for model in benchmark.MODELS:
        label = re.sub(r"^\w+_micro", r"`\g<0>`", model)
        figures = " | ".join(f"{100 * found[name, model]['top1_mean']:.1f}" for name in PROBES)
        assert f"| {label} | {figures} |" in essay
    assert [round(100 * top1) for top1 in of_seeds(committed, "resnet_micro")] == [90, 99, 100]
    assert min(of_seeds(committed, "botnet_micro")) > 0.98
    near, _, *far = (row["top1_mean"] for row in found["pathfinder", BAG]["by_distance"])
    assert round(100 * near) == 98
    assert max(far) < 0.53


def test_answers_are_kept_as_they_were():
    right = np.random.default_rng(0).random(1500) < 0.7
    assert np.array_equal(benchmark.unpacked(benchmark.packed(right), 1500), right)


def test_the_bag_has_no_places_and_the_shuffle_no_neighbours():
    torch.manual_seed(0)
    bag = benchmark.BagOfPatches(3, seed=0).eval()
    image = torch.randn(1, 3, 32, 32, requires_grad=True)
    seen = bag.patches(image)[0, 0, 10, 10]
    (gradient,) = torch.autograd.grad(seen, image)
    rows, columns = gradient[0].abs().sum(0).nonzero().T
    assert (int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())) == (10, 14, 10, 14)
    assert rows.max() - rows.min() + 1 == benchmark.PATCH
    model = benchmark.ShuffledPixels(3, seed=0).eval()
    image = torch.randn(1, 3, 32, 32)
    order = model.order
    moved = torch.empty_like(image.flatten(2))
    moved[..., order] = image.flatten(2)  # put where the shuffle takes them from
    assert torch.equal(model(moved.unflatten(2, (32, 32))), model.model(image))
    neighbours = (order[1:] - order[:-1]).abs() == 1
    assert neighbours.float().mean() < 0.01


def test_in_small_a_bag_of_patches_learns_texture_and_no_arrangement():
    source = load_probe("texture:2", train=1500, val=400)
    assert benchmark.learn(BAG, source, seed=0, epochs=1).mean() > 0.9
    source = load_probe("arrangement:11", train=600, val=402)
    assert benchmark.learn(BAG, source, seed=0, epochs=1).mean() < 0.45


def test_a_comparison_reports_each_distance_of_a_probe(tmp_path, monkeypatch):
    monkeypatch.setattr("glocal.comparison.costs.TIMING_SECONDS", 0.02)
    source = load_probe("pathfinder", train=64, val=80)
    settings = make_settings(["resnet_micro"], budget="1ep", seeds=1, image_size=32, device="cpu")
    results = compare(source, settings, tmp_path)
    rows = results["by_distance"]
    saved = load_file(tmp_path / "runs" / results["runs"][0]["id"] / "predictions.safetensors")
    assert saved["labels"].tolist() == source.val.labels.tolist()
    assert [(row["distance"], row["images"]) for row in rows] == [([d, d], 20) for d in PROBES["pathfinder"].distances]
    assert np.mean([row["top1_mean"] for row in rows]) == pytest.approx(results["runs"][0]["top1"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "model", "right"),
    [
        ("pathfinder", "botnet_micro", True),
        ("pathfinder", SHUFFLED, False),
        ("texture", BAG, True),
        ("arrangement", BAG, False),
        ("arrangement", "botnet_micro", True),
    ],
)
def test_the_same_at_full_size_from_another_seed(name, model, right):
    top1 = benchmark.learn(model, load_data(name), seed=5, epochs=benchmark.EPOCHS[name]).mean()
    chance = 1 / len(PROBES[name].classes)
    assert top1 > 0.9 if right else top1 < chance + 0.06
