"""Backbones compared under a detector and a segmenter, on a few generated images."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from scipy import stats

from glocal.comparison import Run, compare, make_settings, pictures, summarise
from glocal.comparison.heads import RESAMPLES, Examined, draws
from glocal.comparison.metrics import METRICS
from glocal.data.pasted import items_on_photos, label_maps_of_items
from glocal.errors import GlocalError
from glocal.metrics.coco import average_precision, match
from glocal.models.io import load_model
from glocal.schema import CompareResults
from glocal.tasks import evaluate
from glocal.training import HeadConfig, load_recipe
from tests.comparison.asking import losses
from tests.fields import faults
from tests.metrics.test_coco import K, image

SIZE, VAL = 64, 6
MODELS = ("resnet_micro", "cvt_micro")
HEADS = {
    "detection": HeadConfig("fcos"),
    "segmentation": HeadConfig("semantic_fpn", options={"dim": 32, "head_dim": 32}),
}
SCORES = ("id", "status", "map", "map50", "miou", "pixel_accuracy", "per_class", "threshold", "confusion")


def source(task, train=16):
    make = {"detection": items_on_photos, "segmentation": label_maps_of_items}[task]
    return make(SIZE, train=train, val=VAL)


def settings(task, budget="1ep", seeds=2, **kwargs):
    name = {"detection": "detect_micro", "segmentation": "segment_micro"}[task]
    recipe = load_recipe(name, settings=["batch_size=8", "lr=3e-3"])
    asked = {"models": MODELS, "recipe": recipe, "head": HEADS[task], "image_size": SIZE, **kwargs}
    return make_settings(budget=budget, seeds=seeds, device="cpu", task=task, search="exhaustive", **asked)


def scores(results):
    return [{name: run.get(name) for name in SCORES} for run in results["runs"]]


@pytest.fixture(scope="module", params=["detection", "segmentation"])
def whole(request, tmp_path_factory):
    """An uninterrupted comparison: (task, its data, results, folder)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("glocal.comparison.costs.TIMING_SECONDS", 0.02)
        data, out = source(request.param), tmp_path_factory.mktemp(request.param)
        return request.param, data, compare(data, settings(request.param), out), out


def test_results_have_their_schema(whole):
    task, data, results, _ = whole
    metric = METRICS[task]
    assert faults(results, CompareResults) == []
    assert (results["schema"], results["metric"]) == ("glocal.compare/1", metric.key)
    assert results["settings"]["task"] == task
    assert results["settings"]["head"]["head"] == HEADS[task].head
    assert "mixup" not in results["settings"]["recipe"]
    assert [run["id"] for run in results["runs"]] == [f"{model}-f1-s{seed}" for seed in (0, 1) for model in MODELS]
    for run in results["runs"]:
        assert run["status"] == "ok", run["error"]
        assert run[metric.key] == run["curve"][-1]["val_score"]
        assert len(run["per_class"]) == len(data.classes)
        assert (run["budget"]["epochs"], run["budget"]["flop"]) == (1.0, pytest.approx(6 * run["macs"] * 16))
        assert all(run[cost] > 0 for cost in metric.costs)
    best = results["summary"][0]
    seeds = [run[metric.key] for run in results["runs"] if run["model"] == best["model"]]
    assert best[f"{metric.key}_mean"] == pytest.approx(np.mean(seeds), abs=1e-6)
    assert f"% {metric.words.name} " in results["verdict"]["sentence"]
    assert any(f"only {VAL} validation images" in caveat for caveat in results["verdict"]["caveats"])
    assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_a_saved_model_gives_the_scores_of_its_record(whole):
    _, data, results, out = whole
    run = results["runs"][0]
    again = evaluate(load_model(out / "runs" / run["id"]), data.val)
    for name in ("map", "miou", "pixel_accuracy", "per_class", "confusion"):
        assert again.get(name) == run.get(name)


def test_predictions_keep_their_published_keys(whole):
    """docs/results-schema.md: files of an older comparison must be read, and readers of them must read ours."""
    task, _, results, out = whole
    keys = {
        "detection": {"image", "place", "label", "score", "right", "neither", "objects", "boxes"},
        "segmentation": {"pixels", "maps", "starts"},
    }
    saved = load_file(out / "runs" / results["runs"][0]["id"] / "predictions.safetensors")
    assert set(saved) == keys[task]


def test_examples_have_their_pictures(whole):
    _, data, results, out = whole
    drawn = pictures(results, data, out)
    assert results["examples"]
    paths = [example["path"] for example in results["examples"]]
    assert len(set(paths)) == len(paths)
    for example in results["examples"]:
        assert set(example["predictions"]) == set(example["scores"]) == set(MODELS)
        assert drawn[example["truth"]].size == (256, 256)
        assert {drawn[key].size for key in example["predictions"].values()} == {(256, 256)}
    differing = [example for example in results["examples"] if example["why"] == "differ"]
    gaps = [abs(np.subtract(*example["scores"].values())) for example in differing]
    assert gaps == sorted(gaps, reverse=True)


class StopAt:
    """Stops a comparison at the first step of a run."""

    def __init__(self, run_id=None):
        self.run_id, self.started = run_id, []

    def say(self, text): ...
    def finish(self, run, entry): ...
    def publish(self, results): ...

    def start(self, run, number, total):
        self.started.append(run.id)

    def update(self, run, progress):
        if run.id == self.run_id:
            raise KeyboardInterrupt


def test_after_a_stop_resume_runs_what_is_missing_and_ends_the_same(whole, tmp_path):
    task, data, results, _ = whole
    with pytest.raises(KeyboardInterrupt):
        compare(data, settings(task), tmp_path, observer=StopAt("cvt_micro-f1-s1"))
    observer = StopAt()
    again = compare(data, settings(task), tmp_path, resume=True, observer=observer)
    assert observer.started == ["cvt_micro-f1-s1"]
    assert (scores(again), losses(again)) == (scores(results), losses(results))
    for name in ("difference_ci", f"{results['metric']}_ci"):
        assert [row[name] for row in again["summary"]] == [row[name] for row in results["summary"]]
    assert again["examples"] == results["examples"]


def test_another_head_is_another_comparison(whole):
    task, data, _, out = whole
    other = {"detection": "retinanet", "segmentation": "upernet"}[task]
    with pytest.raises(GlocalError, match=r"head\.head: was "):
        compare(data, settings(task, head=HeadConfig(other)), out, resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_side_by_side_in_processes_gives_the_same(task, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one = compare(source(task), settings(task), tmp_path / "one")
        many = compare(source(task), settings(task), tmp_path / "many", side_by_side=True)
    finally:
        torch.set_num_threads(threads)
    if json.loads((tmp_path / "many" / "costs.json").read_text())["threads"] == 1:
        assert (scores(one), losses(one)) == (scores(many), losses(many))
    assert [run["status"] for run in many["runs"]] == ["ok"] * 4


@pytest.mark.slow
def test_masks_are_drawn_and_scored_and_a_fraction_is_a_share_of_the_images(tmp_path):
    asked = settings("detection", head=HeadConfig("mask_rcnn"), models=("resnet_micro",), seeds=1, fractions=(1.0, 0.5))
    data = source("detection")
    results = compare(data, asked, tmp_path)
    assert [run["budget"]["flop"] / run["macs"] for run in results["runs"]] == [6 * 16, 6 * 8]
    run = results["runs"][0]
    assert run["mask_map"] == run["mask"]["map"]
    saved = load_file(tmp_path / "runs" / run["id"] / "predictions.safetensors")
    assert saved["masks"].tobytes().count(b"\n") == len(saved["image"]) - 1
    results["runs"][0]["threshold"] = results["runs"][1]["threshold"] = 0.0
    assert pictures(results, data, tmp_path)


# The statistic


def runs_of(scores_by_model):
    costs = dict.fromkeys(("params", "macs", "latency_ms_b1", "images_per_s_b8", "peak_memory_mib"), 1)
    return [
        {
            **costs,
            "id": Run(model, 1.0, seed).id,
            "model": model,
            "seed": seed,
            "fraction": 1.0,
            "status": "ok",
            "train_images_per_s": 1.0,
            "budget": {"seconds_to_budget": 1.0},
            **dict.fromkeys(("map50", "map75", "mask_map", "pixel_accuracy"), 0.5),
        }
        for model, seeds in scores_by_model.items()
        for seed in range(seeds)
    ]


def test_the_interval_of_average_precision_is_that_of_a_plain_bootstrap():
    """Two detectors on the same images; each resample is a list of images whose precision the library computes."""
    rng = np.random.default_rng(0)
    images = [image(rng) for _ in range(40)]
    # the other detector finds the same, but for every third object, and not quite as well
    worse = [
        (
            truth,
            found._replace(**{part: getattr(found, part)[keep] for part in ("boxes", "scores", "labels")}, masks=None),
        )
        for truth, found in images
        for keep in [np.arange(len(found.scores)) % 3 > 0]
    ]
    evidence, precision = {}, {}
    for name, pairs in (("better", images), ("worse", worse)):
        matches = match(*zip(*pairs, strict=True), K)
        score = float(matches.average_precision()[0])
        evidence[f"{name}-f1-s0"] = Examined(score, matches.average_precision(draws(40)), np.zeros(40))
        precision[name] = pairs
    best, other = summarise(runs_of({"better": 1, "worse": 1}), evidence, METRICS["detection"])
    assert (best["model"], other["model"]) == ("better", "worse")

    def by_library(pairs, drawn):
        drawn = [pairs[i] for i in drawn]
        return average_precision(*zip(*drawn, strict=True), K, masks=False).map

    plain = np.random.default_rng(5).integers(40, size=(300, 40))
    drawn = {name: np.array([by_library(pairs, row) for row in plain]) for name, pairs in precision.items()}
    spread = drawn["better"].std()
    assert best["map_ci"] == pytest.approx(np.quantile(drawn["better"], [0.025, 0.975]), abs=0.35 * spread)
    difference = drawn["worse"] - drawn["better"]
    assert other["difference_ci"] == pytest.approx(np.quantile(difference, [0.025, 0.975]), abs=0.35 * difference.std())
    assert difference.std() < 0.8 * np.hypot(drawn["worse"].std(), spread), "images are shared: the difference is surer"
    assert other["difference_to_best"] == pytest.approx(
        by_library(worse, range(40)) - by_library(images, range(40)), abs=1e-9
    )


def test_seeds_are_drawn_too():
    """Scores that no draw of images changes, of two seeds that are 10 points apart."""
    scores = {"best-f1-s0": 0.5, "best-f1-s1": 0.5, "spread-f1-s0": 0.35, "spread-f1-s1": 0.45}
    evidence = {name: Examined(score, np.full(RESAMPLES, score), np.zeros(3)) for name, score in scores.items()}
    best, spread = summarise(runs_of({"best": 2, "spread": 2}), evidence, METRICS["detection"])
    assert best["map_ci"] == pytest.approx([0.5, 0.5])
    # the variances of a seed, 0 and 0.005, each with one degree of freedom, drawn towards their median with 0.64 x 2
    rng = np.random.default_rng(1)
    typical, prior = 0.0025 / stats.chi2.median(1), 1.28
    variances = (prior * typical + np.array([0, 0.005])) / (prior + 1)
    variances = variances * (prior + 1) / rng.chisquare(prior + 1, (100_000, 2)) / 2
    margin = np.quantile(np.abs((np.sqrt(variances) * rng.standard_normal((100_000, 2))) @ [1, -1]), 0.95)
    assert spread["difference_ci"] == pytest.approx([-0.1 - margin, -0.1 + margin], abs=0.1 * margin)
    assert spread["map_ci"] == [0, 1]  # 12.7 times 5 points to either side


def test_draws_are_the_same_for_all_and_of_as_many_images():
    assert (draws(7).sum(axis=1) == 7).all()
    assert len(draws(7)) == RESAMPLES
    first = draws(7).copy()
    draws.cache_clear()
    assert (draws(7) == first).all()


# What is refused


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"task": "detect"}, "one of classification, detection, segmentation, got 'detect'; nearest: detection"),
        ({"task": "detection", "head": HeadConfig("fco")}, "one of faster_rcnn, .* got 'fco'; nearest: fcos"),
        ({"task": "segmentation", "head": HeadConfig("fcos")}, "segmenter: expected one of semantic_fpn"),
        ({"task": "detection", "mode": "probe"}, "probe is for classification; for "),
        ({"task": "detection", "mode": "finetune"}, "use --weights resnet_micro=FILE"),
        ({"task": "segmentation", "image_size": 16}, "32 to 2048 pixels, got 16"),
    ],
)
def test_what_cannot_be_done_is_said(asked, message):
    with pytest.raises(GlocalError, match=message):
        make_settings(**asked)


def test_a_recipe_with_settings_that_mean_nothing_is_refused_before_anything_runs(tmp_path):
    asked = settings("detection")
    asked = dataclasses.replace(asked, recipe=asked.recipe.replace(mixup=0.8))
    with pytest.raises(GlocalError, match="mixup has no meaning for detection"):
        compare(source("detection"), asked, tmp_path / "out")
    assert not (tmp_path / "out").exists()
