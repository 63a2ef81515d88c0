"""Checkpoints as folders: what goes in comes out, damage is named, and Lightning can use them."""

import json
import math
import shutil

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from glocal.errors import CheckpointError
from glocal.training.checkpoint import MANIFEST, Checkpointer, check, load_checkpoint, save_checkpoint
from glocal.training.lightning import FolderCheckpointIO


def state():
    return {
        "state_dict": {"weight": torch.randn(3, 4), "count": torch.tensor(7)},
        "optimizer": {"weight": {"exp_avg": torch.randn(3, 4), "step": torch.tensor(5.0)}},
        "plain": {"a": [1, 2.5, None, True, "text"], "b": (1, (2, torch.ones(2))), "empty": {}},
        "numbered": {0: {"x": torch.zeros(1)}, 1: "one"},
        "loss": math.nan,
        "lr": math.inf,
        "half": torch.randn(5).bfloat16(),
        "__tensor__": {"__tensor__": "not a mark of ours"},
    }


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return type(b) is dict and a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


@pytest.fixture
def saved(tmp_path):
    save_checkpoint(tmp_path / "step", written := state(), {"recipe.yaml": "lr: 1\n"})
    return tmp_path / "step", written


def test_what_goes_in_comes_out(saved):
    path, written = saved
    loaded = load_checkpoint(path)
    assert set(loaded) == set(written)
    for name in written:
        assert equal(written[name], loaded[name]), name
    assert {file.name for file in path.iterdir()} == {
        MANIFEST, "model.safetensors", "optim.safetensors", "recipe.yaml", "state.json",
    }  # fmt: skip
    assert [file.name for file in path.parent.iterdir()] == ["step"]


def test_what_is_no_plain_value_is_refused_and_nothing_is_left(tmp_path):
    with pytest.raises(TypeError, match="/made: a checkpoint holds tensors and plain values, not object"):
        save_checkpoint(tmp_path / "step", {"made": object()})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, bad):
    with pytest.raises(CheckpointError, match="weight is not finite"):
        save_checkpoint(tmp_path / "step", {"state_dict": {"weight": torch.tensor([1.0, bad])}})
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_what_was_there(saved, monkeypatch):
    path, written = saved
    monkeypatch.setattr("glocal.run_dir.sync", lambda p: (_ for _ in ()).throw(OSError(5, "broken")))
    with pytest.raises(OSError, match="broken"):
        save_checkpoint(path, state())
    assert equal(load_checkpoint(path)["half"], written["half"])
    assert [file.name for file in path.parent.iterdir()] == ["step"]


def flip(path, name):
    content = bytearray((path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (path / name).write_bytes(content)


DAMAGES = {
    "model.safetensors: its content has changed": lambda path: flip(path, "model.safetensors"),
    "optim.safetensors: its content has changed": lambda path: flip(path, "optim.safetensors"),
    "state.json: has 0 bytes": lambda path: (path / "state.json").write_text(""),
    "recipe.yaml: missing": lambda path: (path / "recipe.yaml").unlink(),
    "extra: not in the manifest": lambda path: (path / "extra").write_text(""),
    "MANIFEST.json: cannot be read": lambda path: (path / MANIFEST).unlink(),
    "MANIFEST.json: damaged": lambda path: (path / MANIFEST).write_text("{"),
    "MANIFEST.json: expected glocal.checkpoint/1": lambda path: (path / MANIFEST).write_text('{"format": "2"}'),
    "state.json: not a regular file": lambda path: ((path / "state.json").unlink(), (path / "state.json").mkdir()),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_damage_is_named(saved, message):
    path, _ = saved
    DAMAGES[message](path)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert message in str(caught.value)


def test_a_manifest_that_was_made_for_damaged_files_does_not_help(saved):
    """A digest tells damage, not forgery: what is forged is still data, and of one error type."""
    path, _ = saved
    (path / "state.json").write_text('{"plain": {"__tensor__": "nowhere"}}')
    manifest = json.loads((path / MANIFEST).read_text())
    import hashlib

    content = (path / "state.json").read_bytes()
    manifest["files"]["state.json"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (path / MANIFEST).write_text(json.dumps(manifest))
    check(path)
    with pytest.raises(CheckpointError, match="not a checkpoint of glocal"):
        load_checkpoint(path)


def checkpoints(folder, keep=2):
    return Checkpointer(folder, keep=keep)


def test_the_newest_and_the_best_are_kept(tmp_path):
    of = checkpoints(tmp_path)
    for step, best in ((5, 5), (10, 10), (15, 10), (20, 10), (25, 10)):
        of.save(step, {"state_dict": {"w": torch.tensor([float(step)])}}, best)
    assert of.steps() == [25, 20, 10]
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_step_is_written_again_over_a_damaged_one(tmp_path):
    of = checkpoints(tmp_path)
    for value in (1.0, 2.0):
        of.save(5, {"state_dict": {"w": torch.tensor([value])}}, None)
    assert of.load_newest(lambda _: None)[1]["state_dict"]["w"].item() == 2.0
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_going_back_names_what_was_passed_over(tmp_path):
    of = checkpoints(tmp_path, keep=3)
    for step in (5, 10, 15):
        of.save(step, {"state_dict": {"w": torch.tensor([float(step)])}}, None)
    flip(of.path(15), "model.safetensors")
    shutil.rmtree(of.path(10) / "nothing", ignore_errors=True)
    (of.path(10) / MANIFEST).unlink()
    told = []
    step, loaded = of.load_newest(told.append)
    assert (step, loaded["state_dict"]["w"].item()) == (5, 5.0)
    assert "step-00000015/model.safetensors" in told[0]
    assert "step-00000010/MANIFEST.json" in told[1]


class Line(pl.LightningModule):
    """y = w x + b, for Lightning's own checkpoints."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch, _):
        return (self.layer(batch[0]) - batch[1]).square().mean()

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2)]


def fit(root, epochs, **kwargs):
    torch.manual_seed(1)
    data = DataLoader(TensorDataset(torch.randn(32, 2), torch.randn(32, 1)), batch_size=8)
    trainer = pl.Trainer(
        default_root_dir=root,
        accelerator="cpu",
        max_epochs=epochs,
        plugins=[FolderCheckpointIO()],
        callbacks=[ModelCheckpoint(dirpath=root, filename="{epoch}", save_top_k=-1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Line()
    trainer.fit(module, data, **kwargs)
    return module.state_dict()


@pytest.mark.filterwarnings("ignore")
def test_lightning_resumes_from_a_folder(tmp_path):
    whole = fit(tmp_path / "whole", 4)
    fit(tmp_path / "half", 2)
    paths = list((tmp_path / "half").glob("*.ckpt"))
    assert {file.name for file in paths[0].iterdir()} >= {MANIFEST, "model.safetensors", "state.json"}
    newest = max(paths, key=lambda path: path.name)
    again = fit(tmp_path / "half", 4, ckpt_path=str(newest))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
