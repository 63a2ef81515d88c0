"""Portfolios: the included ones name models that exist and say why, and a user's file is checked."""

import re
import tomllib

import pytest
import timm
import torch

import glocal  # noqa: F401 - registers its models
from glocal.comparison.portfolio import (
    Portfolio,
    Row,
    default_portfolio,
    kind_of_model,
    load_portfolio,
    portfolio_names,
)
from glocal.errors import GlocalError
from glocal.models.creation import default_image_size, has_weights, model_args

NAMES = ("quick", "balanced", "large", "families", "matched")
ROWS = [(name, row) for name in NAMES for row in load_portfolio(name).rows]
each_row = pytest.mark.parametrize(("name", "row"), ROWS, ids=[f"{name}-{row.model}" for name, row in ROWS])


def num_params(model):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in timm.create_model(model, num_classes=0).parameters())


def pretraining(model):
    """Method and data, of which timm has the method in the architecture or in the tag."""
    cfg = timm.get_pretrained_cfg(model)
    data = cfg.tag.rpartition("_")[2]
    return data, *(method for method in ("dinov3", "eupe", "clip") if method in model.replace("dinov3_qkvb", ""))


def test_the_included_portfolios():
    assert portfolio_names() == NAMES
    for name in NAMES:
        portfolio = load_portfolio(name)
        assert portfolio.name == name
        assert portfolio.note.endswith(".")
        assert 5 <= len(portfolio.rows) <= 10
        assert {row.kind for row in portfolio.rows} >= {"cnn", "transformer"}
        assert name == "matched" or any(row.kind == "mix" for row in portfolio.rows)


def test_each_reason_is_its_own():
    reasons = [row.reason for _, row in ROWS]
    assert len(set(reasons)) == len(reasons)
    assert all(reason.endswith(".") and len(reason) > 20 for reason in reasons)


@each_row
def test_the_weights_are_released(name, row):
    assert "." in row.model
    assert row.model in timm.list_models(pretrained=True)
    assert has_weights(row.model)


@each_row
def test_the_kind_is_that_of_the_layers(name, row):
    assert row.kind == kind_of_model(row.model)


@each_row
def test_each_model_takes_224(name, row):
    """And its own size, so that a comparison can have one size for all."""
    for size in {224, default_image_size(row.model)}:
        with torch.device("meta"):
            model = timm.create_model(row.model, num_classes=3, **model_args(row.model, size)).eval()
            assert model(torch.zeros(1, 3, size, size)).shape == (1, 3)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("quick", 2e6, 15e6), ("balanced", 15e6, 32e6), ("large", 40e6, 120e6), ("families", 19e6, 45e6)],
)
def test_sizes(name, low, high):
    sizes = {row.model: num_params(row.model) for row in load_portfolio(name).rows}
    assert {model: size for model, size in sizes.items() if not low <= size <= high} == {}


def test_matched_models_come_in_pairs_of_one_pretraining():
    rows = load_portfolio("matched").rows
    assert all(row.pair for row in rows)
    for pair in {row.pair for row in rows}:
        cnn, transformer = sorted((row for row in rows if row.pair == pair), key=lambda row: row.kind)
        assert (cnn.kind, transformer.kind) == ("cnn", "transformer")
        assert pretraining(cnn.model) == pretraining(transformer.model)
        assert len(pretraining(cnn.model)) == 2
    assert [row.model for name, row in ROWS if row.pair and name != "matched"] == []


def test_families_are_ours_and_trained_on_one_data_set():
    rows = load_portfolio("families").rows
    ours = [row.model for row in rows if timm.models.model_entrypoint(row.model).__module__.startswith("glocal.")]
    assert {model.partition("_")[0] for model in ours} == {"cvt", "conformer", "t2t"}
    assert len(ours) > len(rows) / 2
    assert all(timm.get_pretrained_cfg(row.model).tag.endswith("_in1k") for row in rows)


@pytest.mark.parametrize(
    ("device", "name"),
    [("cpu", "quick"), ("cuda", "balanced"), ("cuda:1", "balanced"), ("mps", "balanced"), ("xpu", "quick")],
)
def test_the_default_fits_the_device(device, name):
    assert default_portfolio(device) == name


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("resnet_micro", "cnn"), ("seresnet18", "cnn"), ("resnest14d", "cnn"), ("convnext_atto", "cnn"),
        ("repvit_m0_9", "cnn"), ("poolformer_s12", "cnn"), ("resnet50_clip", "cnn"),
        ("vit_micro", "transformer"), ("t2t_vit_micro", "transformer"), ("swinv2_tiny_window8_256", "transformer"),
        ("crossvit_9_240", "transformer"), ("mixer_s32_224", "transformer"),
        ("botnet_micro", "mix"), ("cvt_micro", "mix"), ("conformer_micro", "mix"), ("mobilevitv2_050", "mix"),
        ("coat_lite_tiny", "mix"), ("halonet26t", "mix"), ("lambda_resnet26t", "mix"),
    ],
)  # fmt: skip
def test_kinds_by_layers(model, kind):
    assert kind_of_model(model) == kind


# Files.


def test_one_name_per_line(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("\ufeff# what I know\nresnet18  # small\n\n  vit_micro\r\ncvt_micro:projection=linear\n", "utf-8")
    reason = f"named in {path}"
    assert load_portfolio(str(path)) == Portfolio(
        "mine",
        (
            Row("resnet18", "cnn", reason),
            Row("vit_micro", "transformer", reason),
            Row("cvt_micro:projection=linear", kind_of_model("cvt_micro:projection=linear"), reason),
        ),
        "",
    )


def test_a_file_of_the_same_table(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'note = "Two."\n[[rows]]\nmodel = "resnet18"\npair = "p"\n[[rows]]\nmodel = "vit_micro"\n'
        'kind = "transformer"\nreason = "It is small."\npair = "p"\n'
    )
    assert load_portfolio(str(path)) == Portfolio(
        "mine",
        (Row("resnet18", "cnn", f"named in {path}", "p"), Row("vit_micro", "transformer", "It is small.", "p")),
        "Two.",
    )


@pytest.mark.parametrize("name", ["quik", "", "mine.yaml", "Quick"])
def test_unknown_portfolios(name):
    message = (
        f"portfolio: expected one of quick, balanced, large, families, matched, or a .toml or .txt file, got '{name}'"
    )
    with pytest.raises(GlocalError, match=f"^{re.escape(message)}.*; `--models` takes single models$"):
        load_portfolio(name)
    if name == "quik":
        with pytest.raises(GlocalError, match="; nearest: quick;"):
            load_portfolio(name)


ROW = '[[rows]]\nmodel = "resnet18"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected at least one model, got none; each [[rows]] has a model"),
        ('note = "Nothing."', "expected at least one model, got none"),
        ("note = 3\n" + ROW, "expected a text as note, got 3; put it in quotes"),
        ('rows = "resnet18"', "expected tables [[rows]], got 'resnet18'; each [[rows]] has a model"),
        ('rows = ["resnet18"]', "expected tables [[rows]], got"),
        ("[[rows]]\nmodel = \n", "expected TOML, got Invalid value (at line 2, column 9); each"),
        (f'notes = "a"\n{ROW}', "expected name, note, rows, got the unknown key 'notes'; nearest: note"),
        (f'{ROW}modle = "a"', "row 1: expected model, kind, reason, pair, got the unknown key 'modle'; nearest: model"),
        (f'{ROW}kind = "cn"', "row 1: expected kind to be one of cnn, transformer, mix, got 'cn'; nearest: cnn"),
        (f'{ROW}reason = " "', "row 1: expected a text as reason, got ' '; write it, or leave it out"),
        (f"{ROW}pair = 1", "row 1: expected a text as pair, got 1"),
        ('[[rows]]\nkind = "cnn"', "row 1: expected a model, got an object without one; each"),
        (f'{ROW}[[rows]]\nmodel = "resnet81"', "row 2: unknown model 'resnet81'; nearest: resnet"),
        ('[[rows]]\nmodel = "resnet18.none"', "row 1: resnet18 has no weights 'none'; it has resnet18.a1_in1k"),
        ('[[rows]]\nmodel = "cvt_micro:projektion=linear"', "row 1: cvt_micro has no keyword 'projektion'; nearest"),
        (ROW + ROW, "expected each model once, got resnet18 twice; remove one"),
        (
            f'{ROW}[[rows]]\nmodel = "resnet18.a1_in1k"',
            "expected each model once, got resnet18.a1_in1k (also called resnet18) twice; remove one",
        ),
        (f'{ROW}pair = "p"', "expected a cnn and a transformer in pair 'p', got cnn; name the pair in exactly these"),
        (
            f'{ROW}pair = "p"\n[[rows]]\nmodel = "resnet34"\npair = "p"',
            "expected a cnn and a transformer in pair 'p', got cnn, cnn",
        ),
    ],
)
def test_faults_of_a_table(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(GlocalError) as caught:
        load_portfolio(str(path))
    assert str(caught.value).startswith(f"portfolio {path}")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected at least one model, got none"),
        ("# nothing\n\n", "expected at least one model, got none"),
        ("resnet18\nresnet81\n", "row 2: unknown model 'resnet81'; nearest:"),
        ("resnet18\nresnet34\nresnet18\n", "expected each model once, got resnet18 twice; remove one"),
    ],
)
def test_faults_of_a_list(tmp_path, text, message):
    path = tmp_path / "mine.txt"
    path.write_text(text)
    with pytest.raises(GlocalError, match=re.escape(message)):
        load_portfolio(str(path))


@pytest.mark.parametrize("suffix", ["toml", "txt"])
@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"], ids=["missing", "binary"])
def test_files_that_cannot_be_read(tmp_path, suffix, content):
    path = tmp_path / f"mine.{suffix}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(GlocalError, match=r"expected a readable text file, got .*; the included portfolios are quick,"):
        load_portfolio(str(path))


def test_the_file_has_no_other_keys():
    with open(load_portfolio.__globals__["_FILE"], "rb") as file:
        tables = tomllib.load(file)
    assert all(set(table) == {"note", "rows"} for table in tables.values())
    assert all({"model", "kind", "reason"} <= set(row) for table in tables.values() for row in table["rows"])
