import pytest
import torch

import glocal
from glocal.errors import GlocalError
from glocal.models.creation import check_model, create, default_image_size, model_args
from glocal.models.io import ModelConfig, load_model, save_model
from glocal.models.micro import MICRO_MODELS
from glocal.models.names import parse_model, split_models
from glocal.models.names import spell_model as spell


@pytest.mark.parametrize(
    ("word", "keywords"),
    [
        ("cvt_micro", {}),
        ("cvt_micro:projection=linear", {"projection": "linear"}),
        ("cvt_micro:kv_stride=1:projection=linear", {"projection": "linear", "kv_stride": 1}),
        ("vit_micro:position=none", {"position": "none"}),
        ("vit_micro:class_token=False:mlp_ratio=2.5", {"class_token": False, "mlp_ratio": 2.5}),
        ("botnet_micro:attention_stages=()", {"attention_stages": ()}),
        ("t2t_vit_micro:splits=((3,2,1),(3,2,1))", {"splits": ((3, 2, 1), (3, 2, 1))}),
        ("t2t_vit_micro:growth=None", {"growth": None}),
    ],
)
def test_a_word_and_what_it_says(word, keywords):
    name = word.split(":")[0]
    assert parse_model(word) == (name, keywords)
    assert spell(name, keywords) == word


def test_words_are_read_as_people_write_them():
    assert parse_model(" vit_micro : class_token=true : depth= 3 ") == ("vit_micro", {"class_token": True, "depth": 3})


def test_commas_stand_between_words_and_inside_brackets():
    assert split_models("a, b:x=(1,2):y=3 ,c:z=((1,2),(3,4)),") == ["a", "b:x=(1,2):y=3", "c:z=((1,2),(3,4))"]


@pytest.mark.parametrize("value", ["a:b", "True", "3", " x", object()])
def test_a_value_that_would_be_read_otherwise_is_not_spelt(value):
    with pytest.raises(GlocalError, match="plain text"):
        spell("vit_micro", {"position": value})


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("vit_micro:depth", "expected keyword=value"),
        ("vit_micro:", "expected keyword=value"),
        ("vit_micro:depth=2:depth=3", "given twice"),
        ("vit_micro:dept=2", "vit_micro has no keyword 'dept'; nearest: depth"),
        ("vit_micro:num_classes=2", "has no keyword 'num_classes'"),
        ("vit_mikro:depth=2", "unknown model 'vit_mikro'; nearest: vit_micro"),
    ],
)
def test_what_cannot_be_meant_is_said(word, message):
    with pytest.raises(GlocalError) as caught:
        check_model(word, with_keywords=True)
    assert message in str(caught.value)


def test_where_no_keywords_are_taken_a_word_is_no_name():
    with pytest.raises(GlocalError, match="unknown model 'vit_micro:depth=2'"):
        check_model("vit_micro:depth=2")


def test_a_value_the_model_refuses_is_explained():
    with pytest.raises(GlocalError, match="projection: expected one of conv, pool, linear, got 'lineal'"):
        create("cvt_micro:projection=lineal", num_classes=3, image_size=32, seed=0)


def test_the_model_is_that_of_its_keywords_and_loads_again(tmp_path):
    word = "botnet_micro:attention_stages=(3,4):position=none"
    assert default_image_size(word) == 32
    model = create(word, num_classes=3, image_size=32, seed=0).eval()
    kinds = [type(block.conv2).__name__ for stage in (model.layer2, model.layer3, model.layer4) for block in stage]
    assert kinds == ["Conv2d"] * 2 + ["MHSA2d"] * 7
    assert not any("position" in name for name, _ in model.named_parameters())
    save_model(
        model,
        tmp_path,
        ModelConfig.of_classifier(model, classes=("a", "b", "c"), image_size=32, keywords=model_args(word, 32)),
    )
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(load_model(tmp_path).model(images), model(images), rtol=0, atol=0)


def test_without_keywords_nothing_changes():
    plain, word = (
        create(name, num_classes=3, image_size=32, seed=0) for name in ("cvt_micro", "cvt_micro:kv_stride=2")
    )
    for one, other in zip(plain.state_dict().values(), word.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_the_micro_models_are_listed_once():
    assert sorted(MICRO_MODELS) == sorted(glocal.list_models("*_micro"))
