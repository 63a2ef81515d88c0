"""Claims as a whole: trained on the engine, measured, resumed, shared."""

import json
import shutil

import pytest

from glocal.claims import FILE, Comparison, experiment, run_claims
from glocal.claims.claim import arm
from glocal.comparison import processes
from glocal.errors import GlocalError
from glocal.schema import ClaimsResults
from glocal.training import TrainingError
from glocal.training.trainer import Trainer
from tests.claims.making import claim, swapped
from tests.comparison.test_job import Watcher
from tests.fields import faults
from tests.shapes import data_source

SEES = claim()
SWAPPED = claim("swapped", arms=swapped(SEES, "sees", "blind").arms)
BUDGET = "6ep"


@pytest.fixture(scope="module")
def data():
    return data_source(num_train=180, num_val=90)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    out, watcher = tmp_path_factory.mktemp("whole"), Watcher()
    return run(data, out, [SEES, SWAPPED], watcher), out, watcher


def run(data, out, claims, watcher=None, *, seeds=2, **asked):
    asked = {"budget": BUDGET, "device": "cpu", **asked}
    results = run_claims(claims, data, out, seeds=seeds, observer=watcher or Watcher(), **asked)
    assert faults(results, ClaimsResults) == []
    return results


def verdicts(results):
    return {claim["id"]: claim["verdict"] for claim in results["claims"]}


def test_a_real_experiment_supports_a_claim_and_contradicts_it_with_its_arms_swapped(whole):
    results, out, _ = whole
    assert verdicts(results) == {"sees": "supported", "swapped": "contradicted"}
    sees, other = results["claims"]
    assert sees["comparisons"][0]["effect"] == -other["comparisons"][0]["effect"] > 0.1
    assert sees["finding"].startswith("Supported on this data at this budget: sees ")
    assert other["finding"].startswith("Contradicted on this data at this budget: sees ")
    assert json.loads((out / FILE).read_text()) == json.loads(json.dumps(results))
    assert (out / "index.html").exists()


def test_what_is_said_is_what_the_runs_say(whole):
    results, out, _ = whole
    sees = results["claims"][0]
    records = {path.parent.name: json.loads(path.read_text())["run"] for path in out.glob("runs/*/record.json")}
    for one, found in zip(SEES.arms, sees["arms"], strict=True):
        runs = [records[run] for run in found["runs"]]
        assert {run["model"] for run in runs} == set(one.models)
        assert found["by_seed"] == pytest.approx([run["top1"] for run in runs])
        assert found["mean"] == pytest.approx(sum(found["by_seed"]) / 2)
        assert found["interval"][0] <= found["mean"] <= found["interval"][1]
        assert found["steps"] == runs[0]["budget"]["steps"] == 36  # 6 epochs of 180 images in batches of at most 32
        assert [point["score"] for point in found["curves"][0]] == [point["val_score"] for point in runs[0]["curve"]]
    assert sees["cost"]["runs"] == 4
    assert results["seconds_of_runs"].keys() == records.keys()
    assert sees["cost"]["seconds"] == pytest.approx(sum(results["seconds_of_runs"].values()))


def test_shared_arms_are_trained_once(whole):
    started = [run_id for run_id, *_ in whole[2].started]
    assert len(started) == len(set(started)) == 4
    assert [number for _, number, _ in whole[2].started] == [1, 2, 3, 4]
    assert any("Training 4 of 4 runs" in said for said in whole[2].said)


def test_the_same_call_trains_nothing_again(whole, data, tmp_path):
    out = shutil.copytree(whole[1], tmp_path / "out")
    watcher = Watcher()
    again = run(data, out, [SEES, SWAPPED], watcher)
    assert watcher.started == []
    timeless = [[{k: v for k, v in c.items() if k != "created"} for c in r["claims"]] for r in (again, whole[0])]
    assert timeless[0] == timeless[1]


def test_another_claim_adds_its_runs_and_keeps_the_others(whole, data, tmp_path):
    out = shutil.copytree(whole[1], tmp_path / "out")
    (out / FILE).write_text(json.dumps(whole[0]))
    third = claim("third", arms=(arm("sees", "resnet_micro"), arm("blind", "resnet_micro", fraction=0.1)))
    watcher = Watcher()
    results = run(data, out, [third], watcher)
    assert [run_id for run_id, *_ in watcher.started] == ["resnet_micro-f0.1-s0", "resnet_micro-f0.1-s1"]
    assert verdicts(results).keys() == {"sees", "swapped", "third"}
    assert results["claims"][0] == whole[0]["claims"][0]
    assert len(results["seconds_of_runs"]) == 6
    assert {found["steps"] for found in results["claims"][-1]["arms"]} == {36}  # as many as on all images


def test_stopped_and_gone_on_with_it_is_the_same(whole, data, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path, [SEES, SWAPPED], Watcher(stop_at=("resnet_micro-f1-s1", 2)))
    watcher = Watcher()
    results = run(data, tmp_path, [SEES, SWAPPED], watcher)
    assert [run_id for run_id, *_ in watcher.started] == [run_id for run_id, *_ in whole[2].started][2:]
    for one, other in zip(results["claims"], whole[0]["claims"], strict=True):
        assert [row["interval"] for row in one["comparisons"]] == [row["interval"] for row in other["comparisons"]]
        assert [row["by_seed"] for row in one["arms"]] == [row["by_seed"] for row in other["arms"]]


def test_other_settings_are_refused(whole, data, tmp_path):
    out = shutil.copytree(whole[1], tmp_path / "out")
    with pytest.raises(GlocalError, match='budget: was "6ep", is "2ep"'):
        run(data, out, [SEES], budget="2ep")
    with pytest.raises(GlocalError, match="data: was"):
        run(data_source(), out, [SEES])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": "glocal.compare/1"}', '{"schema": "glocal.claims/1"}'])
def test_damaged_results_are_refused_before_anything_is_trained(whole, data, tmp_path, text):
    out = shutil.copytree(whole[1], tmp_path / "out")
    (out / FILE).write_text(text)
    watcher = Watcher()
    with pytest.raises(GlocalError, match="expected results of glocal claims in"):
        run(data, out, [SEES], watcher)
    assert watcher.started == []


def test_a_run_that_fails_leaves_the_other_claims(data, tmp_path, monkeypatch):
    fit = Trainer.fit

    def failing(trainer, model, *args):
        if type(model).__name__ == "VisionTransformer":
            raise TrainingError("the loss became nan")
        return fit(trainer, model, *args)

    monkeypatch.setattr(Trainer, "fit", failing)
    fine = claim("fine", arms=(arm("sees", "resnet_micro"), arm("blind", "resnet_micro", fraction=0.1)))
    results = run(data, tmp_path, [SEES, fine], seeds=1)
    assert verdicts(results)["fine"] is not None
    assert verdicts(results)["sees"] is None
    (finding,) = (claim["finding"] for claim in results["claims"] if claim["id"] == "sees")
    assert "failed: the loss became nan" in finding


def test_a_failed_seed_is_left_out_and_said(whole, data, tmp_path, monkeypatch):
    out = shutil.copytree(whole[1], tmp_path / "out")
    shutil.rmtree(out / "runs/resnet_micro-f1-s1")

    def failing(*args, **kwargs):
        raise TrainingError("the disk is on fire")

    monkeypatch.setattr(Trainer, "fit", failing)
    sees = run(data, out, [SEES])["claims"][0]
    assert sees["seeds"] == [0]
    assert sees["failures"] == ["resnet_micro-f1-s1 failed: the disk is on fire"]
    assert all(len(found["by_seed"]) == 1 for found in sees["arms"])


def test_what_cannot_be_measured_is_untested(whole, tmp_path):
    """64 validation images are too few to see places in groups of them."""
    few = data_source(num_train=60, num_val=9)
    places = claim(
        arms=(
            arm("sees", "resnet_micro", reading="trained zeros"),
            arm("blind", "resnet_micro", reading="trained circular"),
        ),
        measure="places",
    )
    (result,) = run(few, tmp_path, [places], seeds=1, budget="1ep")["claims"]
    assert result["verdict"] is None
    assert "expected at least 8" in result["finding"]


def test_nothing_is_trained_for_a_formula(data, tmp_path):
    from glocal.claims import choose

    watcher = Watcher()
    results = run(data, tmp_path, choose("cost"), watcher)
    assert verdicts(results) == {"cost": "supported"}
    assert watcher.started == []
    inside = results["claims"][0]["comparisons"][0]
    assert inside["interval"][0] > 0.5


def test_a_comparison_of_costs(data, whole, tmp_path):
    out = shutil.copytree(whole[1], tmp_path / "out")
    dear = claim("dear", comparisons=(Comparison("sees", "blind", "more", of="macs"),))
    found = next(claim for claim in run(data, out, [dear])["claims"] if claim["id"] == dear.id)
    costs = [row["macs"] for row in found["arms"]]
    assert found["comparisons"][0]["effect"] == pytest.approx(costs[0] / costs[1] - 1)
    assert found["verdict"] == "supported"


@pytest.mark.parametrize("budget", ["quick", "default", "7ep"])
def test_budgets_by_name(data, budget):
    asked = experiment.Experiment([SEES], data, budget=budget, device="cpu")
    assert str(asked.settings.budget) == experiment.BUDGETS.get(budget, budget)


@pytest.mark.slow
def test_runs_side_by_side_are_those_one_after_the_other(whole, data, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "MEMORY_SHARE", 1.0)
    (sees,) = run(data, tmp_path, [SEES], side_by_side=True)["claims"]
    assert [row["by_seed"] for row in sees["arms"]] == [row["by_seed"] for row in whole[0]["claims"][0]["arms"]]
