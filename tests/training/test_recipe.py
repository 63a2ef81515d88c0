import pytest

from glocal.errors import GlocalError
from glocal.training import DEFAULT_RECIPES, Recipe, load_recipe


def test_a_file_replaces_what_it_names_and_keeps_the_default_of_the_mode(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("lr: 1e-4\nflip: false\n")
    recipe = load_recipe(path, "finetune")
    assert (recipe.lr, recipe.flip) == (1e-4, False)
    assert recipe.layer_decay == DEFAULT_RECIPES["finetune"].layer_decay != Recipe().layer_decay


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
