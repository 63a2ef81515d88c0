"""Learning rates tried for each model: the same trials for all, on training images alone, and the right model wins."""

import json

import numpy as np
import pytest
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import register_model
from torch import nn

from glocal.comparison import compare, make_settings
from glocal.comparison.settings import Run
from glocal.comparison.trials import chosen_rates, held_out, trial_budget, trial_results, trial_runs
from glocal.data import DataSource, ImageSet
from glocal.data.sets import Array
from glocal.errors import GlocalError
from glocal.training import Budget, TrainConfig
from tests.comparison import asking

RECIPE = TrainConfig.of(optimizer="sgd", lr=0.05, momentum=0.5, batch_size=20, warmup=0.0, flip=False, weight_decay=0.0)


MODELS = ("steep_mean_of_colours", "flat_grid_of_colours")


class _Linear(nn.Module):
    """A linear classifier of an average-pooled image; the smaller ``gain`` is, the larger a rate it needs."""

    def __init__(self, name: str, num_classes: int, side: int, gain: float) -> None:
        super().__init__()
        self.pretrained_cfg = {
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "classifier": "fc",
            "architecture": name,
        }
        self.pretrained_cfg |= {
            "input_size": (3, 16, 16),
            "num_classes": num_classes,
            "crop_pct": 1.0,
            "interpolation": "bilinear",
        }
        self.num_classes, self.num_features = num_classes, 3 * side**2
        self.side, self.gain = side, gain
        self.fc = nn.Linear(3 * side**2, num_classes)

    def get_classifier(self):
        return self.fc

    def forward(self, x):
        return self.gain * self.fc(nn.functional.adaptive_avg_pool2d(x, self.side).flatten(1))


@register_model
def steep_mean_of_colours(pretrained=False, num_classes=10, **kwargs):
    """Sees three numbers of an image; learns best at a small rate."""
    return _Linear(MODELS[0], num_classes, 1, 4.0)


@register_model
def flat_grid_of_colours(pretrained=False, num_classes=10, **kwargs):
    """Sees more of an image; needs a large rate."""
    return _Linear(MODELS[1], num_classes, 4, 0.05)


def entry(nll, top1=0.5, status="ok"):
    return {"status": status, "error": None, "nll": nll, "top1": top1, "budget": {"flop": 1.0}}


def test_each_model_takes_the_rate_with_the_smallest_nll():
    found = {
        Run("a", 1.0, 0, 0.25): entry(0.9),
        Run("a", 1.0, 0, 1.0): entry(0.7),
        Run("a", 1.0, 0, 4.0): entry(0.7),  # a tie goes to the smaller rate
        Run("b", 1.0, 0, 0.25): entry(float("nan")),
        Run("b", 1.0, 0, 1.0): entry(None, status="failed"),
        Run("b", 1.0, 0, 4.0): entry(2.0),
        Run("c", 1.0, 0, 1.0): entry(None, status="failed"),
    }
    assert chosen_rates(found) == {"a": 1.0, "b": 4.0}


def test_reordered_pairs_are_counted():
    """At 0.25 for all b is before a; at their own rates a is before b."""
    found = {
        Run("resnet_micro", 1.0, 0, 0.25): entry(0.9, 0.3),
        Run("resnet_micro", 1.0, 0, 1.0): entry(0.5, 0.8),
        Run("vit_micro", 1.0, 0, 0.25): entry(0.7, 0.6),
        Run("vit_micro", 1.0, 0, 1.0): entry(0.8, 0.5),
    }
    results = trial_results(asking.settings(rates=(0.25, 1)), found, 12)
    assert results["chosen"] == {"resnet_micro": 3e-3, "vit_micro": 7.5e-4}
    assert (results["pairs"], results["reordered"]) == (1, {"0.00075": 1, "0.003": 0})
    assert (results["images"], results["flop"], results["budget"]) == (12, 4.0, "1ep")


@pytest.mark.parametrize(
    ("budget", "short"), [("10ep", "3ep"), ("2ep", "1ep"), ("0.5ep", "0.5ep"), ("1e12flop", "3e+11flop")]
)
def test_budget_of_a_trial(budget, short):
    assert str(trial_budget(Budget.parse(budget))) == short


def test_a_fifth_of_each_class_is_held_out():
    labels = np.repeat(np.arange(4), [10, 10, 3, 1])
    images = ImageSet(
        "train", tuple("abcd"), labels, tuple(map(str, range(24))), Array(np.zeros((24, 8, 8))), np.arange(24)
    )
    kept, left = held_out(images)
    assert sorted([*kept, *left]) == list(range(24))
    assert np.bincount(images.labels[left], minlength=4).tolist() == [2, 2, 1, 0]
    assert held_out(images)[1].tolist() == left.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rates": ()}, "expected distinct multiples"),
        ({"rates": (1, 1)}, "expected distinct multiples"),
        ({"rates": (0.0, 1)}, "expected distinct multiples"),
        ({"rates": (0.5, 1), "task": "segmentation"}, "learning rates are tried for classifiers"),
    ],
)
def test_bad_rates_are_refused(options, message):
    with pytest.raises(GlocalError, match=message):
        make_settings(["resnet_micro"], device="cpu", **options)


def test_fine_tuning_tries_three_rates_and_scratch_none(tmp_path):
    weights = tmp_path / "w.pth"
    torch.save({}, weights)
    tuned = make_settings(["resnet_micro"], mode="finetune", weights={"resnet_micro": weights}, device="cpu")
    assert [run.id for run in trial_runs(tuned)] == ["resnet_micro-lr0.25", "resnet_micro-lr1", "resnet_micro-lr4"]
    assert trial_runs(make_settings(["resnet_micro"], device="cpu")) == []
    assert trial_runs(make_settings(["resnet_micro"], device="cpu", rates=(1,))) == []


@pytest.fixture(scope="module")
def quadrants():
    """Four classes: which quarter of the image is bright; the mean of all pixels gives about half of them away."""

    def images(count, seed, name):
        rng, labels = np.random.default_rng(seed), np.arange(count) % 4
        pixels = rng.normal(90, 30, (count, 16, 16))
        for image, label in zip(pixels, labels, strict=True):
            top, left = 8 * (label // 2), 8 * (label % 2)
            image[top : top + 8, left : left + 8] += 25
            image += 12 * label + rng.normal(0, 12)
        paths = tuple(f"{name}/{i}" for i in range(count))
        return ImageSet(
            name, tuple("abcd"), labels, paths, Array(pixels.clip(0, 255).astype(np.uint8)), np.arange(count)
        )

    return DataSource("quadrants", images(160, 0, "train"), images(200, 1, "val"), tuple("abcd"), (), (), "drawn", "q")


def test_one_rate_for_all_picks_the_wrong_model_and_trials_the_right_one(quadrants, tmp_path):
    def ask(rates):
        return make_settings(
            MODELS, budget="3ep", seeds=2, recipe=RECIPE, image_size=16, device="cpu", rates=rates, search="exhaustive"
        )

    shared = compare(quadrants, ask((1,)), tmp_path / "shared")
    own = compare(quadrants, ask((0.1, 1, 50)), tmp_path / "own")
    assert shared["verdict"]["most_accurate"] == "steep_mean_of_colours"
    assert own["verdict"]["most_accurate"] == "flat_grid_of_colours"
    assert "trials" not in shared
    assert own["trials"]["chosen"]["flat_grid_of_colours"] == pytest.approx(2.5)
    plan = json.loads((tmp_path / "own" / "plan.json").read_text())
    assert plan["rates"] == [0.1, 1, 50]


def test_trials_are_resumed(quadrants, tmp_path):
    settings = make_settings(
        MODELS, budget="1ep", seeds=1, recipe=RECIPE, image_size=16, device="cpu", rates=(1, 50), search="exhaustive"
    )
    whole = compare(quadrants, settings, tmp_path / "whole")

    class Stopping:
        finished = 0

        def __getattr__(self, name):
            return lambda *args: None

        def finish(self, run, entry):
            self.finished += 1
            if self.finished == 3:
                raise InterruptedError

    with pytest.raises(InterruptedError):
        compare(quadrants, settings, tmp_path / "cut", observer=Stopping())
    assert len(list((tmp_path / "cut" / "trials").iterdir())) == 3
    assert not list((tmp_path / "cut" / "runs").iterdir())
    again = compare(quadrants, settings, tmp_path / "cut", resume=True)
    assert again["trials"] == whole["trials"]
    assert asking.scores(again) == asking.scores(whole)
