"""From images to results, on real references for the shortest time; and what is said of it."""

import json
import shlex

import pytest
import torch

from glocal.data.probes import load_probe
from glocal.errors import GlocalError
from glocal.recommend import RULE, recommend
from glocal.recommend.disturb import CONDITIONS
from glocal.schema import RecommendResults
from tests.fields import faults
from tests.recommend.making import rates, results
from tests.shapes import data_source


@pytest.fixture(autouse=True)
def short_timing(monkeypatch):
    monkeypatch.setattr("glocal.recommend.job.TIMING_SECONDS", 0.02)


@pytest.fixture(scope="module")
def found():
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("glocal.recommend.job.TIMING_SECONDS", 0.02)
        made = recommend(
            data_source(60, 30), budget="1ep", seeds=2, progress=lambda share, what: told.append((share, what))
        )
    return made, told


def test_results_are_json_and_say_what_was_done(found):
    made, told = found
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    assert faults(made, RecommendResults) == []
    assert made["settings"]["seeds"] == [0, 1]
    assert (made["data"]["learned_from"], made["data"]["tested_on"]) == (60, 30)
    assert [row["name"] for row in made["need"]["conditions"]] == [condition.name for condition in CONDITIONS]
    assert made["need"]["chance"] == pytest.approx(1 / 3)
    assert [one["model"] for one in made["recommended"]] == [
        kind.backbone(32) for kind, _ in RULE[made["finding"]["kind"]]
    ]
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 1)
    assert any("reference 2 of 2: training" in what for _, what in told)


def test_costs_are_those_of_the_candidates_and_no_accuracy_is_claimed(found):
    made, _ = found
    for one in made["recommended"]:
        assert min(one[key] for key in ("params", "macs", "latency_ms_b1", "images_per_s_b32", "peak_memory_mib")) > 0
        assert not any("top1" in key or "accuracy" in key for key in one)
    by_name = {one["model"]: one for one in made["recommended"]}
    assert by_name["resnet_micro"]["macs"] == pytest.approx(12.19e6, rel=0.01)  # as docs/models.md has it
    assert "not trained" in made["caveats"][0]
    assert any("only 30 validation images" in caveat for caveat in made["caveats"])


def test_the_same_call_finds_the_same_need(found):
    again = recommend(data_source(60, 30), budget="1ep", seeds=2)
    assert again["need"] == found[0]["need"]
    torch.manual_seed(5)  # whatever was drawn before
    assert recommend(data_source(60, 30), budget="1ep", seeds=2)["need"] == again["need"]


def test_the_next_command_compares_what_was_recommended():
    made = results(rates(shuffled=0.3), name="my photos")
    models = ",".join(one["model"] for one in made["recommended"])
    assert shlex.split(made["next"]) == [
        "glocal", "compare", "my photos", "--models", models, "--image-size", "32",
    ]  # fmt: skip


def test_caveats_follow_from_what_was_done():
    plain, few = results(rates()), results(rates(), seeds=1, images=150)
    assert not any("one seed" in caveat or "only" in caveat for caveat in plain["caveats"])
    assert any("one seed" in caveat for caveat in few["caveats"])
    assert any("only 150 validation images" in caveat for caveat in few["caveats"])
    assert any("A fraction of each class" in caveat for caveat in plain["caveats"])  # 6000 of 60


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seeds": 0}, "from 1 to 20, got 0"),
        ({"seeds": 21}, "from 1 to 20, got 21"),
        ({"image_size": 31}, "expected 32 to 1024 pixels, got 31"),
        ({"budget": "soon"}, "budget"),
        ({"device": "tpu"}, "device: expected"),
    ],
)
def test_a_wrong_request_is_named_before_anything_is_read(wrong, message):
    with pytest.raises(GlocalError, match=message):
        recommend(None, **wrong)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kinds"), [("texture", {"local"}), ("arrangement", {"global", "uncertain"})])
def test_the_needs_of_probes_are_found(name, kinds):
    """On images whose need is known by construction; what was measured with the defaults: docs/recommend.md."""
    made = recommend(load_probe(name, train=3000, val=1000), budget="5ep", seeds=2)
    assert made["finding"]["kind"] in kinds
