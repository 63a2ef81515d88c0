import pytest

from glocal.errors import GlocalError
from glocal.training import Recipe, load_recipe, recipe_names


def test_a_file_replaces_what_it_names_and_keeps_the_default_of_the_mode(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("lr: 1e-4\nflip: false\n")
    recipe = load_recipe(path, "finetune")
    assert (recipe.lr, recipe.flip) == (1e-4, False)
    assert recipe.layer_decay == load_recipe("finetune").layer_decay != Recipe().layer_decay


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
    assert load_recipe(path) == Recipe()


def test_a_recipe_is_the_same_after_a_round_trip(tmp_path):
    for name in recipe_names():
        recipe = load_recipe(name)
        path = tmp_path / f"{name}.yaml"
        path.write_text(recipe.to_yaml())
        assert load_recipe(path) == recipe


def test_settings_of_the_command_line_come_last():
    recipe = load_recipe("finetune", settings=["lr=1e-4", "freeze=[stem,stages.0]", "lr=2e-4", "flip=false"])
    assert (recipe.lr, recipe.freeze, recipe.flip) == (2e-4, ("stem", "stages.0"), False)
    assert recipe.layer_decay == load_recipe("finetune").layer_decay


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


def test_frozen():
    with pytest.raises(AttributeError):
        load_recipe("micro").lr = 1.0
