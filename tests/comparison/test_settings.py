import pytest

import glocal
from glocal.comparison import Run, make_settings
from glocal.errors import GlocalError
from glocal.training import TrainConfig, load_recipe


def test_defaults():
    settings = make_settings()
    assert settings.models[:3] == ("resnet_micro", "botnet_micro", "vit_micro")
    assert set(settings.models) == set(glocal.list_models("*_micro"))
    assert (settings.seeds, settings.image_size, settings.mode) == ((0, 1, 2), 32, "scratch")
    assert settings.recipe == load_recipe("micro")


def test_the_size_is_the_largest_default_of_the_models():
    assert make_settings(["resnet_micro", "resnet18"]).image_size == 224


def test_every_model_of_a_seed_comes_before_the_next_seed_and_all_of_the_largest_fraction_first():
    settings = make_settings(["resnet_micro", "vit_micro"], seeds=2, fractions=[0.1, 1.0])
    assert [run.id for run in settings.runs()] == [
        *("resnet_micro-f1-s0", "vit_micro-f1-s0", "resnet_micro-f1-s1", "vit_micro-f1-s1"),
        *("resnet_micro-f0.1-s0", "vit_micro-f0.1-s0", "resnet_micro-f0.1-s1", "vit_micro-f0.1-s1"),
    ]


def test_names_of_runs_are_safe_and_differ():
    assert Run("resnet50.a1_in1k", 1.0, 0).id == "resnet50.a1_in1k-f1-s0"
    names = {Run(model, 1.0, 0).id for model in ("a/b", "a:b", "a_b", "../a")}
    assert len(names) == 4
    assert not any("/" in name for name in names)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"models": ["botnet5"]}, "unknown model 'botnet5'; nearest: botnet50"),
        ({"models": []}, "expected at least one"),
        ({"models": ["vit_micro", "vit_micro"]}, "got 'vit_micro' twice"),
        ({"models": ["resnet50.none"]}, "resnet50 has no weights 'none'; it has resnet50.a1_in1k"),
        ({"budget": "5"}, "such as 5ep"),
        ({"seeds": 0}, "from 1 to 100, got 0"),
        ({"mode": "fine-tune"}, "one of scratch, finetune, probe, got 'fine-tune'; nearest: finetune"),
        ({"mode": "finetune"}, "use --weights resnet_micro=FILE"),
        ({"mode": "probe"}, "probe needs weights"),
        ({"mode": "probe", "budget": "5ep"}, "until it has converged; expected no --budget, got 5ep"),
        ({"mode": "probe", "seeds": 3}, "each seed would give the same result; expected 1 or none, got 3"),
        ({"mode": "probe", "recipe": TrainConfig.of(lr=1.0)}, "takes image_size, crop_pct, batch_size; got "),
        ({"fractions": [0.0]}, "above 0 and at most 1"),
        ({"fractions": [1.5]}, "got 1.5"),
        ({"fractions": [0.1, 0.1]}, "distinct numbers"),
        ({"fractions": [float("nan")]}, "above 0"),
        ({"device": "tpu"}, "device: expected auto or one of"),
        ({"device": "cuda:99"}, "'cuda:99'"),
        ({"image_size": 5000}, "8 to 1024 pixels, got 5000"),
        ({"on_error": "ignore"}, "one of stop, skip"),
    ],
)
def test_what_cannot_be_done_is_said(asked, message):
    with pytest.raises(GlocalError) as caught:
        make_settings(**asked)
    assert message in str(caught.value)


def test_weights_must_be_there_and_for_a_model_compared(tmp_path):
    file = tmp_path / "weights.safetensors"
    for asked, message in (
        ({"mode": "finetune", "weights": {"resnet_micro": file}}, "no file"),
        ({"mode": "finetune", "weights": {"resnet50": file}}, "one of the compared models"),
        ({"weights": {"resnet_micro": file}}, "expected --mode finetune or probe"),
    ):
        with pytest.raises(GlocalError, match=message):
            make_settings(["resnet_micro"], **asked)
