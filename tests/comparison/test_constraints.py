"""A comparison with limits on the cost of the model to take."""

import json
import time

import pytest

from glocal.comparison import CostLimits, compare, constraints, deployment
from glocal.comparison.limits import margins
from glocal.errors import GlocalError
from glocal.schema import CompareResults
from tests.comparison.asking import model_files, scores, settings
from tests.fields import faults
from tests.shapes import data_source

NAMES = ("resnet_micro", "vit_micro")


@pytest.fixture(scope="module")
def data():
    return data_source()


@pytest.fixture(autouse=True)
def shorter(monkeypatch):
    monkeypatch.setattr(deployment, "TIMING_SECONDS", 0.02)


class Listener:
    def __init__(self):
        self.said, self.started = [], []

    def say(self, text):
        self.said.append(text)

    def start(self, run, number, total):
        self.started.append((run.id, number, total))

    def __getattr__(self, name):
        return lambda *_: None


@pytest.fixture(scope="module")
def params():
    from glocal.bench import count_params
    from glocal.models.creation import create

    return {name: count_params(create(name, num_classes=3, image_size=32, seed=0)) for name in NAMES}


def between(params):
    """A limit on parameters that one of the two models meets: (limits, that model, the other)."""
    small, large = sorted(NAMES, key=params.__getitem__)
    return CostLimits(params=(params[small] + params[large]) / 2), small, large


def asked(limits, **kwargs):
    return settings(seeds=1, budget="1ep", limits=limits, **kwargs)


def test_a_limit_that_nothing_meets_stops_before_training_and_names_the_nearest(data, tmp_path, params):
    small = min(NAMES, key=params.__getitem__)
    with pytest.raises(GlocalError) as error:
        compare(data, asked(CostLimits(params=1000)), tmp_path)
    assert f"expected a model of at most 0.001M parameters, got none among 2; nearest: {small}, " in str(error.value)
    assert list((tmp_path / "runs").iterdir()) == []
    assert not (tmp_path / "results.json").exists()
    results = compare(data, asked(CostLimits(params=1e9)), tmp_path, resume=True)  # allow more
    assert len(results["runs"]) == 2


def test_a_model_above_a_limit_is_left_out_before_it_is_trained(data, tmp_path, params):
    limits, small, large = between(params)
    listener = Listener()
    results = compare(data, asked(limits), tmp_path, observer=listener)
    assert faults(results, CompareResults) == []
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert [run["model"] for run in results["runs"]] == [small]
    assert listener.started == [(f"{small}-f1-s0", 1, 1)]
    (note,) = (text for text in listener.said if text.startswith("left out"))
    assert note.startswith(f"left out: {large}: ")
    assert note.endswith(f"M parameters, above {limits.params / 1e6:.6f}".rstrip("0") + "M")
    of_large = next(one for one in results["limits"]["models"] if one["model"] == large)
    assert of_large["reasons"] == [note.removeprefix(f"left out: {large}: ")]
    assert of_large["costs"]["params"] == params[large]
    assert results["limits"]["asked"]["params"] == limits.params
    sentence = results["verdict"]["sentence"]
    assert f"Not within the limits: {large} (" in sentence
    assert not any("missing" in caveat for caveat in results["verdict"]["caveats"])
    confirmed = results["limits"]["confirmed"]
    assert (confirmed["model"], confirmed["run"], confirmed["reasons"]) == (small, f"{small}-f1-s0", [])
    share = 100 * (1 - params[small] / limits.params)
    assert f"Measured again after training, {small} holds the limit: " in sentence
    assert f"{share:.0f} % below" in sentence


def test_another_limit_judges_again_and_trains_nothing(data, tmp_path, params):
    limits, small, large = between(params)
    first = compare(data, asked(None), tmp_path)
    assert "limits" not in first
    files, costs = model_files(tmp_path), json.loads((tmp_path / "costs.json").read_text())
    assert set(costs) == {"costs", "jobs", "threads"}

    listener = Listener()
    again = compare(data, asked(limits), tmp_path, resume=True, observer=listener)
    assert not listener.started
    assert scores(again) == scores(first)
    assert [(row["model"], row["within_limits"]) for row in again["summary"]] == [(small, True), (large, False)]
    outside = again["summary"][1]
    assert not outside["tied_with_best"]
    assert outside["difference_to_best"] == pytest.approx(outside["top1_mean"] - again["summary"][0]["top1_mean"])
    verdict = again["verdict"]
    assert verdict["most_accurate"] == verdict["cheapest_tied"] == verdict["fastest"] == small
    assert verdict["best_set"] == [small]

    # a cost that has not been measured is measured now, the others are kept
    wide = compare(data, asked(CostLimits(file_bytes=1e9, latency_ms=1e5)), tmp_path, resume=True)
    kept = json.loads((tmp_path / "costs.json").read_text())
    assert {key: kept[key] for key in costs} == costs
    assert all(one["costs"]["file_bytes"] > 4 * one["costs"]["params"] for one in wide["limits"]["models"])
    saved = (tmp_path / "runs" / wide["limits"]["confirmed"]["run"] / "model.safetensors").stat().st_size
    assert wide["limits"]["confirmed"]["costs"]["file_bytes"] == saved
    assert len(wide["limits"]["confirmed"]["margins"]) == 2
    assert wide["verdict"]["best_set"] == first["verdict"]["best_set"]
    assert "holds the limits: " in wide["verdict"]["sentence"]

    last = compare(data, asked(None), tmp_path, resume=True)
    assert {**last, "created": ""} == {**first, "created": ""}
    assert model_files(tmp_path) == files


def test_a_model_that_was_left_out_is_trained_when_more_is_allowed(data, tmp_path, params):
    limits, _, large = between(params)
    compare(data, asked(limits), tmp_path)
    listener = Listener()
    results = compare(data, asked(None), tmp_path, resume=True, observer=listener)
    assert [run_id for run_id, *_ in listener.started] == [f"{large}-f1-s0"]
    assert len(results["summary"]) == 2


def test_a_race_is_among_those_that_meet_the_limits(data, tmp_path, params):
    limits, small, _large = between(params)
    first = compare(data, settings(budget="2ep", seeds=2, search="race"), tmp_path)
    assert {first["race"]["looks"][0]["standings"][i]["model"] for i in range(2)} == set(NAMES)
    again = compare(data, settings(budget="2ep", seeds=2, search="race", limits=limits), tmp_path, resume=True)
    assert "race" not in again  # one model alone does not race
    assert again["verdict"]["cheapest_tied"] == small
    assert {run["model"] for run in again["runs"]} >= {small}


def test_a_chosen_model_that_became_slow_is_said(data, tmp_path, monkeypatch):
    load = deployment.load_model

    def slowed(path, *args):
        saved = load(path, *args)
        saved.model.register_forward_pre_hook(lambda *_: time.sleep(0.3))
        return saved

    monkeypatch.setattr(deployment, "load_model", slowed)
    results = compare(data, asked(CostLimits(latency_ms=250)), tmp_path)
    (reason,) = results["limits"]["confirmed"]["reasons"]
    assert reason.endswith(" ms per image in PyTorch, above 250 ms")
    model = results["limits"]["confirmed"]["model"]
    assert (
        f"Measured again after training, {model} no longer holds the limits: {reason}."
        in (results["verdict"]["sentence"])
    )
    assert any("--resume measures again" in caveat for caveat in results["verdict"]["caveats"])


def test_in_another_runtime(data, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    limits = CostLimits(latency_ms=1e4, file_bytes=1e9, runtime="onnxruntime")
    results = compare(data, asked(limits), tmp_path)
    assert all(0 < one["costs"]["latency_ms"] < 1e4 for one in results["limits"]["models"])
    assert " ms per image in onnxruntime, " in results["verdict"]["sentence"]
    kept = json.loads((tmp_path / "costs.json").read_text())["deployment"]["onnxruntime-b1"]
    assert set(kept) == set(NAMES)
    assert all("latency_ms_b1_onnxruntime" in of_model for of_model in kept.values())


def test_what_is_measured_once_is_not_measured_again(data, tmp_path, monkeypatch):
    compare(data, asked(CostLimits(file_bytes=1e9)), tmp_path)
    before = json.loads((tmp_path / "costs.json").read_text())
    monkeypatch.setattr(constraints, "saved_bytes", None)
    compare(data, asked(CostLimits(file_bytes=1e8)), tmp_path, resume=True)
    assert json.loads((tmp_path / "costs.json").read_text()) == before


def test_a_runtime_without_a_limit_in_it_is_refused():
    with pytest.raises(GlocalError, match="runtime: onnxruntime is where time and file are measured; expected a limit"):
        settings(limits=CostLimits(params=1e6, runtime="onnxruntime"))
    with pytest.raises(GlocalError, match="runtime: expected eager for segmentation, got openvino"):
        settings(task="segmentation", recipe=None, limits=CostLimits(latency_ms=1, runtime="openvino"))


def test_margins():
    limits = CostLimits(latency_ms=10, params=20e6)
    costs = {"latency_ms_b1": 8.9, "latency_ms_b1_range": [8.0, 11.5], "params": 20e6}
    assert margins(limits, costs) == [
        "8.90 ms per image in PyTorch, 11 % below 10 ms but at the limit: half of the passes took 8.00 to 11.5 ms",
        "20.0M parameters, 0 % below 20M",
    ]
