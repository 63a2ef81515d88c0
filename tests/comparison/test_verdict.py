import numpy as np
import pytest

from glocal.comparison import judge, summarise

IMAGES = 1000


def entry(model, seed=0, *, fraction=1.0, macs=10, params=10, latency=1.0, status="ok"):
    return {
        "id": f"{model}-f{fraction:g}-s{seed}",
        "model": model,
        "seed": seed,
        "fraction": fraction,
        "status": status,
        "error": None if status == "ok" else "ran out of luck",
        "top5": 0.99,
        "ece": 0.02 * (seed + 1),
        "train_images_per_s": 100.0 * (seed + 1),
        "curve": [],
        "budget": {"asked": "5ep", "seconds_to_budget": 10.0},
        "params": params,
        "macs": macs,
        "latency_ms_b1": latency,
        "images_per_s_b32": 1.0,
        "peak_memory_mib": 1.0,
    }


def answers(wrong, start=0):
    """Wrong on `wrong` images from `start` on."""
    right = np.ones(IMAGES, bool)
    right[start : start + wrong] = False
    return right


def verdict(runs, right, num_runs=None):
    summary = summarise(runs, {run["id"]: right[run["model"]] for run in runs if run["status"] == "ok"})
    return summary, judge(summary, runs, IMAGES, num_runs or len(runs))


def test_the_cheaper_of_two_ties_is_taken():
    runs = [entry("big", macs=30, latency=3.0), entry("small", macs=15, latency=2.0), entry("bad", macs=1, latency=1.0)]
    summary, result = verdict(runs, {"big": answers(100), "small": answers(105, 20), "bad": answers(400)})
    assert [row["model"] for row in summary] == ["big", "small", "bad"]
    assert [row["tied_with_best"] for row in summary] == [True, True, False]
    assert (result["most_accurate"], result["cheapest_tied"], result["fastest"]) == ("big", "small", "bad")
    assert result["sentence"] == (
        "Take small: its 89.5 % top-1 is within the noise of big, the most accurate at 90.0 %, and it is cheaper: "
        "2.0 against 3.0 ms per image at batch 1. If speed at batch 1 decides, bad is the fastest with 1.0 ms per "
        "image (60.0 % top-1)."
    )


def test_a_clear_winner():
    _, result = verdict([entry("one"), entry("two", latency=2.0)], {"one": answers(100), "two": answers(200)})
    assert result["sentence"] == (
        "Take one: at 90.0 % top-1 it is the most accurate, 10.0 points ahead of two, which is more than the noise. "
        "It is also the fastest at batch 1, 1.0 ms per image."
    )


def test_ties_that_are_no_cheaper():
    runs = [entry("one"), entry("two", params=20, latency=2.0), entry("three", macs=20, latency=2.0)]
    _, result = verdict(runs, {"one": answers(100), "two": answers(102, 3), "three": answers(103, 5)})
    assert result["cheapest_tied"] == "one"
    assert "two and three are within the noise of it but not measurably cheaper" in result["sentence"]


def priced(**costs):
    """Two ties, the more accurate first, with costs of (one, two); a range of a cost is 10 % to both sides."""
    runs = [entry("one"), entry("two")]
    for place, run in enumerate(runs):
        run |= {key: pair[place] for key, pair in costs.items()}
        for key in ("latency_ms_b1", "images_per_s_b32"):
            run[f"{key}_range"] = [0.9 * run[key], 1.1 * run[key]]
    summary = summarise(runs, {"one-f1-s0": answers(100), "two-f1-s0": answers(101)})
    return lambda cost: judge(summary, runs, IMAGES, 2, cost=cost)["cheapest_tied"]


def test_a_difference_in_cost_within_its_noise_is_a_tie_and_the_more_accurate_is_taken():
    assert priced(latency_ms_b1=(5.6, 5.0), macs=(20, 10))("latency") == "one"
    assert priced(latency_ms_b1=(5.6, 4.0), macs=(10, 20))("latency") == "two"
    # fewer multiply-accumulates are no lower price
    assert priced(latency_ms_b1=(5.6, 9.1), macs=(20, 19))("latency") == "one"


def test_the_cost_is_the_one_asked_for():
    cheapest = priced(
        latency_ms_b1=(2.0, 1.0), macs=(10, 20), images_per_s_b32=(300.0, 200.0), peak_memory_mib=(80.0, 70.0)
    )
    assert [cheapest(cost) for cost in ("latency", "macs", "throughput", "memory")] == ["two", "one", "one", "two"]


def test_an_unfinished_comparison_says_so_first():
    _, result = verdict([entry("one"), entry("two")], {"one": answers(100), "two": answers(200)}, num_runs=21)
    assert result["sentence"].startswith("So far, with 2 of 21 runs finished: Take one")


def test_guessing_rising_curves_busy_machines_and_random_weights_are_said():
    runs = [entry("one"), entry("two")]
    runs[0]["curve"] = [{"step": step, "val_score": score} for step, score in ((70, 0.5), (90, 0.52), (100, 0.53))]
    runs[1]["curve"] = [{"step": step, "val_score": 0.5} for step in (70, 90, 100)]
    runs[1]["latency_ms_b1_range"] = [1.0, 4.5]
    summary = summarise(runs, {"one-f1-s0": answers(470), "two-f1-s0": answers(480)})
    caveats = judge(summary, runs, IMAGES, 2, guess=0.52, scratch=True)["caveats"]
    for expected in (
        "No model is better than always answering the most frequent class: 52.0 % top-1.",
        "The curve of one still rises",
        "half of the passes of two took 1.0 to 4.5 ms",
        "Pretrained weights usually matter more",
    ):
        assert any(expected in caveat for caveat in caveats), expected
    quiet = judge(summary, [entry("one"), entry("two")], IMAGES, 2, guess=0.3)["caveats"]
    assert not any("frequent" in c or "rises" in c or "random weights" in c for c in quiet)


def test_one_model_is_no_comparison():
    _, result = verdict([entry("one")], {"one": answers(100)})
    assert "one reaches 90.0 % top-1 (95 % interval 88." in result["sentence"]
    assert "no other model" in result["sentence"]


def test_seeds_are_averaged():
    runs = [entry("one", seed) for seed in (0, 1, 2)]
    (row,) = summarise(runs, {run["id"]: answers(100 + 10 * run["seed"]) for run in runs})
    assert row["seeds"] == 3
    assert row["top1_mean"] == pytest.approx(0.89)
    assert row["ece_mean"] == pytest.approx(0.04)
    assert row["train_images_per_s"] == pytest.approx(200)
    assert row["ci_method"].startswith("t-interval over 3 seeds")
    assert judge([row], runs, IMAGES, 3)["caveats"] == []


def test_each_fraction_is_judged_by_its_own_best_and_the_verdict_by_the_largest():
    runs = [entry(model, fraction=f) for f in (1.0, 0.1) for model in ("hungry", "frugal")]
    wrong = {"hungry-f1-s0": 50, "frugal-f1-s0": 150, "hungry-f0.1-s0": 500, "frugal-f0.1-s0": 300}
    summary = summarise(runs, {name: answers(count) for name, count in wrong.items()})
    assert [(row["fraction"], row["model"]) for row in summary] == [
        (1.0, "hungry"),
        (1.0, "frugal"),
        (0.1, "frugal"),
        (0.1, "hungry"),
    ]
    assert [row["difference_to_best"] for row in summary] == pytest.approx([0, -0.1, 0, -0.2])
    assert judge(summary, runs, IMAGES, 4)["most_accurate"] == "hungry"


def test_caveats_name_what_is_weak():
    runs = [entry("one"), entry("two", status="failed")]
    summary = summarise(runs, {"one-f1-s0": answers(10)[:50]})
    caveats = judge(summary, runs, 50, 4)["caveats"]
    for expected in (
        "one seed only",
        "only 50 validation images",
        "two-f1-s0 failed: ran out of luck",
        "2 of 4 runs",
    ):
        assert any(expected in caveat for caveat in caveats), expected


def test_without_a_finished_run_there_is_no_verdict():
    result = judge([], [entry("one", status="failed")], IMAGES, 1)
    assert result["most_accurate"] is None
    assert "No run has finished" in result["sentence"]
