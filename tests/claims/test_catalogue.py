import re

import pytest
import timm
import torch

from glocal.bench import count_macs
from glocal.claims import CLAIMS, choose
from glocal.claims.catalogue import HYBRIDS, models_by_fraction
from glocal.claims.measures import METRICS
from glocal.errors import GlocalError
from glocal.models.creation import check_model
from glocal.models.micro import MICRO_MODELS
from glocal.models.names import parse_model

IDS = (
    "small-data", "coupling", "two-heads", "cvt-position-free", "cvt-conv-projection", "cvt-kv-stride", "cvt-cls",
    "t2t-tokens", "bot-position", "bot-where", "cat-embedding", "cat-shift", "cat-position", "cost", "low-pass",
    "padding-position", "small-patches",
)  # fmt: skip
MODELS = sorted({model for models in models_by_fraction(CLAIMS).values() for model in models})


def macs(word):
    name, keywords = parse_model(word)
    with torch.device("meta"):
        return count_macs(timm.create_model(name, num_classes=10, img_size=32, **keywords), 32)


def test_all_claims_are_there():
    assert tuple(claim.id for claim in CLAIMS) == IDS
    assert tuple(claim.id for claim in choose("all")) == IDS


@pytest.mark.parametrize("word", MODELS)
def test_every_arm_can_be_made(word):
    check_model(word, with_keywords=True)
    assert 3e6 < macs(word) < 26e6


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_a_claim_says_what_a_newcomer_needs(claim):
    assert claim.sentence.endswith(".")
    assert len(claim.sentence) < 220
    assert all(len(text) > 40 for text in (claim.background, claim.differ))
    assert re.search(r"\d{4}", claim.source)
    assert claim.url.startswith("https://arxiv.org/abs/")
    assert claim.measure in METRICS
    judged = {name for part in claim.comparisons for name in (part.first, part.second)}
    assert judged - {None} <= {arm.name for arm in claim.arms}
    for arm in claim.arms:
        assert arm.reading or arm.models


@pytest.mark.parametrize("claim", [claim for claim in CLAIMS if claim.measure == "top1"], ids=lambda claim: claim.id)
def test_judged_arms_are_different_networks(claim):
    for part in claim.comparisons:
        first, second = claim.arm(part.first), claim.arm(part.second)
        assert first.models != second.models
        assert first.fraction == second.fraction


def test_families_are_those_that_are_compared():
    assert set(HYBRIDS) == set(MICRO_MODELS) - {"resnet_micro", "vit_micro"}


def test_small_patches_are_compared_at_about_the_same_cost():
    costs = [macs(arm.models[0]) for arm in choose("small-patches")[0].arms]
    assert max(costs) / min(costs) < 1.25


def test_arms_that_claims_share_are_trained_once():
    assert sum(len(claim.trained()) for claim in CLAIMS) > sum(map(len, models_by_fraction(CLAIMS).values()))
    assert models_by_fraction(choose("coupling,two-heads")) == models_by_fraction(choose("coupling"))
    assert models_by_fraction(choose("cost")) == {}
    assert list(models_by_fraction(choose("small-data"))) == [1.0, 0.3, 0.1]


@pytest.mark.parametrize(
    ("ids", "message"),
    [("cvt-clss", "nearest: cvt-cls"), ("", "got nothing"), ("coupling,", None), ("all,coupling", "got 'all'")],
)
def test_ids_are_checked(ids, message):
    if message is None:
        assert [claim.id for claim in choose(ids)] == ["coupling"]
        return
    with pytest.raises(GlocalError) as caught:
        choose(ids)
    assert message in str(caught.value)
