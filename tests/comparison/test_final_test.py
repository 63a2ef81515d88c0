"""The chosen models on images that chose nothing."""

import dataclasses
import json

import numpy as np
import pytest
import timm
import torch

from glocal.comparison import CostLimits, compare, final_test
from glocal.comparison.final_test import digest_of, final_test_in_words, run_final_test
from glocal.comparison.settings import Run
from glocal.schema import CompareResults
from tests.comparison.asking import model_files, scores, settings
from tests.fields import faults
from tests.shapes import data_source, image_set


@pytest.fixture(scope="module")
def data():
    test = image_set(24, seed=2, name="test")
    return dataclasses.replace(data_source(), test=test.subset(np.flatnonzero(test.labels != 1)))  # without a class


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("glocal.comparison.costs.TIMING_SECONDS", 0.02)
        out = tmp_path_factory.mktemp("whole")
        return compare(data, settings(), out), out


def test_the_chosen_models_are_evaluated_with_all_their_seeds(whole, data):
    results, out = whole
    assert faults(results, CompareResults) == []
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert results["data"]["test"] == results["test"]["images"] == 16
    verdict, rows = results["verdict"], results["test"]["models"]
    assert [row["model"] for row in rows] == list(dict.fromkeys([verdict["cheapest_tied"], verdict["most_accurate"]]))
    for row in rows:
        correct, losses = [], []
        for seed in range(2):
            model = timm.create_model(f"local-dir:{out}/runs/{row['model']}-f1-s{seed}", pretrained=True).eval()
            transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
            with torch.inference_mode():
                logits = model(torch.stack([transform(data.test.image(i)) for i in range(16)]))
            labels = torch.from_numpy(data.test.labels)
            correct.append((logits.argmax(1) == labels).double().mean().item())
            losses.append(torch.nn.functional.cross_entropy(logits, labels).item())
        assert row["seeds"] == 2
        assert row["top1_mean"] == pytest.approx(np.mean(correct))
        assert row["nll_mean"] == pytest.approx(np.mean(losses), rel=1e-3)
        assert row["top1_ci"][0] <= row["top1_mean"] <= row["top1_ci"][1]
    assert "On the 16 test images, which chose nothing, " in verdict["sentence"]
    assert "looks better than it is" not in verdict["sentence"]
    assert verdict["choice"] is not None


def test_what_is_kept_is_not_computed_again(whole, data, monkeypatch):
    results, out = whole
    monkeypatch.setattr(final_test, "load_model", None)
    again = compare(data, settings(), out, resume=True, command=results["command"])
    assert {**again, "created": ""} == {**results, "created": ""}


@pytest.mark.parametrize("damage", ["{", "[]", '{"schema": "other"}', None])
def test_after_a_kill_what_is_missing_or_damaged_is_computed(whole, data, damage):
    results, out = whole
    file = out / "runs" / f"{results['test']['models'][0]['model']}-f1-s1" / "test.json"
    content = file.read_text()
    if damage is None:
        file.unlink()
    else:
        file.write_text(damage)
    again = compare(data, settings(), out, resume=True)
    assert again["test"] == results["test"]
    assert file.read_text() == content


def test_no_other_result_depends_on_the_test_images(whole, data, tmp_path):
    results, out = whole
    without = compare(dataclasses.replace(data, test=None), settings(), tmp_path)
    assert "test" not in without
    assert "test" not in without["data"]
    assert scores(without) == scores(results)
    assert model_files(tmp_path) == model_files(out)
    assert "looks better than it is" in without["verdict"]["sentence"]


def test_with_limits_the_model_within_them_is_tested(whole, data):
    results, out = whole
    small, large = sorted((row["params"], row["model"]) for row in results["summary"])
    limited = settings(limits=CostLimits(params=(small[0] + large[0]) / 2))
    again = compare(data, limited, out, resume=True)
    assert [row["model"] for row in again["test"]["models"]] == [small[1]]


class Fixed:
    """Predictions as given, instead of those of a model."""

    def __init__(self, predicted):
        self.predicted, self.nll = np.array(predicted), np.full(len(predicted), 0.5)


def test_hand_made_counts(tmp_path, monkeypatch):
    images = image_set(8, seed=0, name="test")  # labels 0 1 2 0 1 2 0 1
    answers = {
        "a-f1-s0": [0, 1, 2, 0, 1, 2, 0, 0],
        "a-f1-s1": [0, 1, 2, 0, 0, 0, 1, 0],
        "b-f1-s0": [2, 2, 2, 2, 2, 2, 2, 2],
    }
    for run in answers:
        (tmp_path / run).mkdir()
        (tmp_path / run / "model.safetensors").write_text(run)
    monkeypatch.setattr(final_test, "_evaluate", lambda run, *_: Fixed(answers[run.name]))
    runs = [Run("a", 1.0, 0), Run("a", 1.0, 1), Run("b", 1.0, 0)]
    found = run_final_test(["b", "a"], runs, images, tmp_path, "cpu")
    assert [(row["model"], row["seeds"], row["top1_mean"], row["nll_mean"]) for row in found["models"]] == [
        ("b", 1, 2 / 8, 0.5), ("a", 2, (7 + 4) / 16, 0.5)
    ]  # fmt: skip
    low, high = found["models"][0]["top1_ci"]
    assert final_test_in_words(found, "top-1").startswith(
        f" On the 8 test images, which chose nothing, b reaches 25.0 % top-1 ({100 * low:.1f} to {100 * high:.1f}) "
        "and a, the most accurate on the validation images, reaches 68.8 % top-1 ("
    )
    # another model, or other images: what is kept is not taken
    (tmp_path / "b-f1-s0/model.safetensors").write_text("other")
    answers["b-f1-s0"] = [0] * 8
    assert run_final_test(["b"], runs, images, tmp_path, "cpu")["models"][0]["top1_mean"] == 3 / 8
    answers["b-f1-s0"] = [1] * 7
    seven = images.subset([*range(7)])
    assert digest_of(seven) != digest_of(images)
    assert run_final_test(["b"], runs, seven, tmp_path, "cpu")["models"][0]["top1_mean"] == 2 / 7
