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


def test_frozen():
    with pytest.raises(AttributeError):
        load_recipe("micro").optimizer.lr = 1.0
