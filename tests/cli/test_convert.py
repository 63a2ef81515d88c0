"""``glocal convert``: released files to safetensors, and every way in which a file can be wrong."""

import pickle
from functools import partial

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from glocal.cli import convert  # noqa: F401  (registers the command)
from tests.parity import recipe
from tests.parity.test_parity import load
from tests.randomized import calm, undrawn


@pytest.fixture
def call(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return partial(command, "convert")


@pytest.fixture(scope="module")
def official():
    """T2T-ViT-7 under the names of its release."""
    manifest, _ = load("t2t_vit_7")
    return {name: torch.from_numpy(array) for name, array in recipe.state_dict(manifest).items()}


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_release_becomes_safetensors_that_timm_loads(call, official, tmp_path, wrapped):
    release = {"state_dict": {f"module.{k}": v for k, v in official.items()}, "epoch": 309} if wrapped else official
    torch.save(release, tmp_path / "71.7_T2T_ViT_7.pth.tar")
    code, out, err = call("71.7_T2T_ViT_7.pth.tar", "--model", "t2t_vit_7", "--out", "t2t.safetensors")
    assert code == 0
    assert "tokens_to_token.attention1.w -> tokens_to_token.attention1.attend.w" in out
    assert len(out.splitlines()) == len(official)
    assert f"{len(official)} entries read, {len(official)} written: t2t.safetensors" in err
    with safe_open(tmp_path / "t2t.safetensors", "pt") as file:
        assert file.metadata()["model"] == "t2t_vit_7"
        assert file.metadata()["source"] == "71.7_T2T_ViT_7.pth.tar"
    model = timm.create_model("t2t_vit_7", pretrained=True, pretrained_cfg_overlay={"file": "t2t.safetensors"})
    assert torch.equal(model.blocks[3].attn.qkv.weight, official["blocks.3.attn.qkv.weight"])
    again = call("t2t.safetensors", "--model", "t2t_vit_7", "--out", "again.safetensors", "--quiet")
    assert again[:2] == (0, "")
    assert load_file("again.safetensors").keys() == load_file("t2t.safetensors").keys()


def test_the_map_names_what_was_reshaped_or_left_out(call, tmp_path):
    manifest, _ = load("cat_tiny")
    torch.save({k: torch.from_numpy(v) for k, v in recipe.state_dict(manifest).items()}, tmp_path / "cat.pth")
    code, out, _ = call("cat.pth", "--model", "cat_tiny", "--out", "cat.safetensors")
    assert code == 0
    last = out.splitlines()[-1]
    assert last.startswith("reshaped, merged or dropped: ape, layers.0.pre_ipsa_blocks.0.attn.relative_position_index")
    assert last.endswith("-> pos_embed")
    assert "layers.0.downsample.reduction.weight -> stages.1.downsample.reduction.weight" in out


def test_the_head_may_have_any_number_of_classes(call, tmp_path):
    save_file(calm(undrawn(timm.create_model, "cvt_micro", num_classes=7)).state_dict(), tmp_path / "seven.safetensors")
    assert call("seven.safetensors", "--model", "cvt_micro", "--out", "out.safetensors")[0] == 0
    code, _, err = call("seven.safetensors", "--model", "cvt_micro", "--out", "no.safetensors", "--num-classes", "5")
    assert code == 2
    assert "shape: head.weight expected (5, 96), got (7, 96)" in err
    assert not (tmp_path / "no.safetensors").exists()


class Harm:
    def __reduce__(self):
        return (print, ("code from the file has run",))


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "missing.pth", "no file missing.pth"),
        (b"", "empty.pth", "damaged or not a checkpoint"),
        (b"not a checkpoint at all" * 50, "text.pth", "damaged or not a checkpoint"),
        (b"short", "text.safetensors", "damaged or not a checkpoint"),
        (pickle.dumps({"model": Harm()}), "pickle.pth", "damaged or not a checkpoint"),
        ("harm", "harm.pth", "could execute code"),
        ("half", "half.pth", "damaged or not a checkpoint"),
        ("list", "list.pth", "expected a state dict in list.pth, got list"),
        ("partial", "partial.pth", "missing: blocks.6.mlp.fc2.weight"),
        ("extra", "extra.pth", "left over: aux_head.weight"),
        ("other", "other.pth", "the checkpoint is not one of t2t_vit_7"),
        ("words", "words.pth", "expected tensors"),
    ],
)
def test_a_bad_file_is_named_with_its_reason(call, official, tmp_path, content, name, message):
    kinds = {
        "harm": {"state_dict": {"a": Harm()}},
        "list": [1, 2],
        "partial": {k: v for k, v in official.items() if not k.startswith("blocks.6.mlp.fc2")},
        "extra": official | {"aux_head.weight": torch.zeros(3)},
        "other": timm.create_model("resnet_micro").state_dict(),
        "words": {"state_dict": {"lr": 0.1}},
    }
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content == "half":
        torch.save(official, tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:100_000])
    elif content:
        torch.save(kinds[content], tmp_path / name)
    code, out, err = call(name, "--model", "t2t_vit_7", "--out", "out.safetensors")
    assert code == 2
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert "has run" not in out + err
    assert not (tmp_path / "out.safetensors").exists()


def test_wrong_calls(call, official, tmp_path):
    torch.save(official, tmp_path / "t2t.pth")
    for arguments, message in (
        (("--model", "t2t_vit_8", "--out", "a.safetensors"), "t2t_vit_7"),
        (("--model", "resnet18", "--out", "a.safetensors"), "expected one of glocal's models"),
        (("--model", "t2t_vit_7", "--out", "a.pth"), "a name that ends in .safetensors"),
        (("--model", "t2t_vit_7", "--out", "no/such/a.safetensors"), "cannot write"),
    ):
        code, _, err = call("t2t.pth", *arguments)
        assert code == 2
        assert message in " ".join(err.split())
        assert "Traceback" not in err
