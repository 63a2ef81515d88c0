import numpy as np
import pytest
import yaml

from glocal.errors import GlocalError
from glocal.training import TrainConfig, load_recipe, recipe_names


def test_a_file_replaces_what_it_names_and_keeps_the_default_of_the_mode(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("lr: 1e-4\nflip: false\n")
    recipe = load_recipe(path, "finetune")
    assert (recipe.optimizer.lr, recipe.data.flip) == (1e-4, False)
    assert (
        recipe.optimizer.layer_decay
        == load_recipe("finetune").optimizer.layer_decay
        != TrainConfig().optimizer.layer_decay
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: 0.1", "unknown setting 'learning_rate'"),
        ("warm_up: 0.1", "nearest: warmup"),
        ("lr: fast", "'fast'"),
        ("lr: 0", "lr must be above 0, got 0.0"),
        ("lr: .nan", "lr must be above 0"),
        ("batch_size: 1", "batch_size must be at least 2"),
        ("batch_size: 12.5", "12.5"),
        ("augment: heavy", "one of none, light, randaugment"),
        ("optimizer: adamv", "nearest: adam"),
        ("- lr", "expected lines of"),
        ("lr: [", "not valid YAML"),
        ("lr: ${oc.env:HOME}", "recipe"),
    ],
)
def test_a_mistake_is_named(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(GlocalError, match="recipe") as caught:
        load_recipe(path)
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(GlocalError, match=r"none\.yaml: cannot be read"):
        load_recipe(tmp_path / "none.yaml")


def test_an_empty_file_is_the_default(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("# nothing\n")
    assert load_recipe(path) == TrainConfig.of()


def test_a_recipe_is_the_same_after_a_round_trip(tmp_path):
    for name in recipe_names():
        recipe = load_recipe(name)
        path = tmp_path / f"{name}.yaml"
        path.write_text(recipe.to_yaml())
        assert load_recipe(path) == recipe


def test_settings_of_the_command_line_come_last():
    recipe = load_recipe("finetune", settings=["lr=1e-4", "freeze=[stem,stages.0]", "lr=2e-4", "flip=false"])
    assert (recipe.optimizer.lr, recipe.model.freeze, recipe.data.flip) == (2e-4, ("stem", "stages.0"), False)
    assert recipe.optimizer.layer_decay == load_recipe("finetune").optimizer.layer_decay


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lr", "expected key=value"),
        ("=3", "expected key=value"),
        ("epoch=3", "nearest: epochs"),
        ("lr=fast", "'fast'"),
        ("lr=${oc.env:HOME}", "expected plain values"),
        ("auto_augment=${oc.env:HOME}", "expected plain values"),
        ("batch_size=", "batch_size"),
    ],
)
def test_a_mistaken_setting_is_named(setting, message):
    with pytest.raises(GlocalError) as caught:
        load_recipe("micro", settings=[setting])
    assert message in str(caught.value)


def test_an_unknown_name_shows_the_shipped_recipes():
    with pytest.raises(GlocalError, match=r"shipped recipes: .*finetune.*nearest: deit"):
        load_recipe("deti")


def test_the_names_of_the_last_version_are_understood_and_said_once(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("repeats: 3\nlr: 0.1\n")
    with pytest.warns(FutureWarning, match=r"recipe\.yaml: repeats is called aug_repeats now") as said:
        recipe = load_recipe(path)
    assert len(said) == 1
    assert recipe.data.aug_repeats == 3
    with pytest.warns(FutureWarning, match="accumulate is called grad_accum_steps now"):
        assert load_recipe("micro", settings=["accumulate=2"]).optimizer.grad_accum_steps == 2


def test_all_parts_can_be_printed_and_set_by_name():
    config = TrainConfig.of(name="vit_micro", lr=0.5, device="cuda", epochs=3.0, seed=7)
    assert (config.model.name, config.optimizer.lr, config.hardware.device, config.seed) == (
        "vit_micro",
        0.5,
        "cuda",
        7,
    )
    shown = yaml.safe_load(str(config))
    assert (shown["optimizer"]["lr"], shown["schedule"]["epochs"], shown["data"]["batch_size"]) == (0.5, 3.0, 32)
    with pytest.raises(TypeError, match="learning_rate"):
        TrainConfig.of(learning_rate=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "bf16-mixed"}, "precision: expected one of 32, bf16, fp16, got 'bf16-mixed'; nearest: bf16"),
        ({"precision": 32}, "precision: expected a string, got 32"),
        ({"precision": "fp16"}, "precision: fp16 needs a CUDA device, got cpu"),
        ({"strategy": "fspd", "devices": 2}, "strategy: expected one of ddp, fsdp, got 'fspd'; nearest: fsdp"),
        ({"devices": 0}, "devices: expected at least 1 of 1 node, got 0 of 1"),
        ({"devices": "2"}, "devices: expected a whole number, got '2'"),
        ({"num_nodes": 1.5}, "num_nodes: expected a whole number, got 1.5"),
        ({"device": "mps", "devices": 2}, "devices: expected 1 with mps"),
        ({"device": "gpu"}, "device: expected cpu, cuda, cuda:1 or mps, got 'gpu'"),
        ({"sync_batchnorm": "no"}, "sync_batchnorm: expected True or False, got 'no'"),
        ({"on_error": "skpi"}, "on_error: expected one of stop, skip, got 'skpi'; nearest: skip"),
        ({"num_workers": -1}, "num_workers must be 0 or more, or None, got -1"),
        ({"batch_size": 12.5}, "batch_size: expected a whole number, got 12.5"),
        ({"flip": "false"}, "flip: expected True or False, got 'false'"),
        ({"lr": float("inf")}, "lr: expected a finite number, got inf"),
        ({"lr": "1e-3"}, "lr: expected a finite number, got '1e-3'"),
        ({"optimizer": "adamv"}, "nearest: adam"),
        ({"schedule": "cosin"}, "schedule must be one of cosine, step, poly, got 'cosin'"),
        ({"milestones": "0.5"}, "milestones: expected a tuple, each of it a finite number, got '0.5'"),
        ({"freeze": "backbone"}, "freeze: expected a tuple, each of it a string, got 'backbone'"),
        ({"weights": "model.pth"}, r"such as Path\('model.pth'\); got 'model.pth'"),
        ({"log_every_steps": None}, "log_every_steps: expected a whole number, got None"),
        ({"resume": 1}, "resume: expected True or False, got 1"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
    ],
)
def test_a_mistaken_keyword_is_named_too(settings, message):
    """What a command checks by its options, Python code meets here; each of these trained something else, or later."""
    with pytest.raises(GlocalError, match=message):
        TrainConfig.of(**settings)


def test_whole_numbers_lists_and_numpys_are_numbers():
    given = {"lr": 1, "seed": np.int64(3), "milestones": [np.float64(0.5)], "schedule": "step", "freeze": ["stem"]}
    config = TrainConfig.of(**given)
    assert (config.optimizer.lr, config.seed) == (1, 3)
    assert (config.schedule.milestones, config.model.freeze) == ((0.5,), ("stem",))


def test_frozen():
    with pytest.raises(AttributeError):
        load_recipe("micro").optimizer.lr = 1.0
