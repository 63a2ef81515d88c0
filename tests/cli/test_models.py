"""``glocal models`` as its reader sees it: a table, a pipe, JSON, a mistyped name."""

import json
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

import glocal
from glocal.cli import app, models
from glocal.errors import GlocalError


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["models", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


NAMES = glocal.list_models()
QUICK = {"resnet_micro", "cvt_micro", "cat_micro", "conformer_micro", "t2t_vit_micro", "botnet50", "t2t_vit_dense"}


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_what_is_kept_is_what_is_counted(name):
    """`make docs` was run after the last change of a model."""
    (row,) = (row for row in json.loads(run(name, "--json")) if row["name"] == name)
    assert {key: row[key] for key in ("family", "params", "macs", "input_size")} == models.count(name)


def test_every_model_in_less_than_ten_seconds():
    start = time.perf_counter()
    lines = run().splitlines()
    assert time.perf_counter() - start < 10
    assert [line.split()[0] for line in lines[1:]] == glocal.list_models()


def test_a_row_says_what_it_should():
    header, row = run("glocal_resnet50").splitlines()
    assert header.split("  ")[0] == "Model"
    expected = ["glocal_resnet50", "ResNet", "25.56", "4.09", "224", "80.8", "-", "timm", "resnet50.tv2_in1k"]
    assert row.split()[:8] + row.split()[-1:] == expected


def test_a_figure_of_another_size_says_so():
    assert "84.7 @384" in run("botnet_s1_128")


def test_a_pipe_gets_whole_rows_without_colour():
    output = run("vit_base")
    assert "\x1b" not in output
    assert "VisionTransformer" in output
    assert "vit_base_patch16_224.augreg2_in21k_ft_in1k" in output


def test_json_has_all_published_figures_with_their_sources():
    (model,) = json.loads(run("glocal_resnet50", "--json"))
    assert model["family"] == "ResNet"
    assert model["params"] == 25_557_032
    assert model["macs"] == 4_089_184_256
    assert model["input_size"] == [3, 224, 224]
    assert model["checkpoint"] is False
    top1 = [row["top1"] for row in model["published"]]
    assert top1[0] == 81.24
    assert top1 == sorted(top1, reverse=True)
    assert [model["published"][1][key] for key in ("input", "params_m", "macs_g", "top1")] == [224, 25.56, 4.11, 80.846]
    assert all(row["source"] for row in model["published"])


def test_patterns_and_parts_of_names():
    assert [model["name"] for model in json.loads(run("botnet_s1_*", "--json"))] == glocal.list_models("botnet_s1_*")
    assert [model["name"] for model in json.loads(run("micro", "--json"))] == glocal.list_models("*_micro")


def test_timm_models_on_request():
    found = {model["name"]: model for model in json.loads(run("botnet26*", "--all", "--json"))}
    assert found["botnet26t_256"]["checkpoint"] is True
    assert found["botnet26t_256"]["input_size"] == [3, 256, 256]
    with pytest.raises(GlocalError, match="expected a PATTERN"):
        run("--all")


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [("botnet5O", "nearest: botnet50"), ("glocal_resnet5*0x", "nearest: glocal_resnet50"), ("convnext", "add --all")],
)
def test_a_wrong_name_gets_the_nearest_or_the_way_to_it(pattern, hint):
    with pytest.raises(GlocalError, match=hint):
        run(pattern)


def test_a_mistake_is_exit_code_2_and_one_message():
    code = "import sys; from glocal.cli import main; sys.argv = ['glocal', 'models', 'botnet5O']; main()"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("Error: models: expected")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_help_has_examples():
    output = run("--help")
    assert "glocal models 'vit_*_224' --all" in output
