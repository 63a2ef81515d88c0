"""A damaged newest checkpoint is named and passed over. The quick form of benchmarks/reliability/damage.py."""

import json
import os
import random
import shutil

import pytest
import torch
from benchmarks.reliability import damage, forked

from glocal.training.checkpoint import Checkpointer, save_checkpoint


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The unbroken run, and one that was killed after two checkpoints."""
    folder = tmp_path_factory.mktemp("damage")
    whole, killed = folder / "whole", folder / "killed"
    assert forked.run(lambda: forked.train(whole), folder / "log") == 0
    damage.killed_run(killed)
    return folder, whole, killed


@pytest.mark.parametrize("kind", sorted({kind.__name__ for kind in damage.KINDS}))
def test_each_kind_is_noticed(place, tmp_path, kind):
    """Without the run that would go on: six forms of each kind."""
    for i in range(6):
        out = tmp_path / str(i)
        shutil.copytree(place[2] / "checkpoints", out / "checkpoints")
        path, before = out / "checkpoints" / damage.NEWEST, out / "checkpoints" / damage.BEFORE
        bad = getattr(damage, kind)(path, before, random.Random(f"{kind} {i}"))
        told = []
        found = Checkpointer(out / "checkpoints").load_newest(told.append)
        assert found is not None
        assert found[0] == 3, told
        assert damage.is_named(path, bad, told[0]), (bad, told)


def whole_copy(path, before, _):
    shutil.rmtree(path)
    shutil.copytree(before, path)
    return ""


def link_to_nothing(path, before, _):
    shutil.rmtree(path)
    path.symlink_to("nothing")
    return "MANIFEST.json"


def file_in_its_place(path, before, _):
    shutil.rmtree(path)
    path.write_text("not a folder")
    return "MANIFEST.json"


def pipe(path, before, _):
    (path / "MANIFEST.json").unlink()
    os.mkfifo(path / "MANIFEST.json")
    return "MANIFEST.json"


def infinite_size(path, before, _):
    content = json.loads((path / "MANIFEST.json").read_text())
    content["files"]["state.json"]["bytes"] = float("inf")
    (path / "MANIFEST.json").write_text(json.dumps(content))
    return "MANIFEST.json"


def test_the_run_goes_on_from_the_one_before(place):
    folder, whole, killed = place
    kinds = [damage.flip, whole_copy, link_to_nothing, file_in_its_place, pipe, infinite_size]
    faults = forked.side_by_side(
        lambda kind: damage.falls_back(folder / kind.__name__, killed, whole, kind, "0"), kinds, folder / "found"
    )
    assert faults == [[]] * len(kinds)


def test_negative_control_a_reader_that_does_not_check_is_noticed(place, monkeypatch):
    folder, whole, killed = place
    monkeypatch.setattr("glocal.training.checkpoint.check", lambda path: None)  # the fork has it too
    assert damage.falls_back(folder / "unchecked", killed, whole, damage.flip, "3")


def test_what_is_saved_after_going_back_is_kept(tmp_path):
    """The checkpoints that were passed over have later steps, and must not push out what is saved now."""
    checkpoints = Checkpointer(tmp_path / "checkpoints")
    state = lambda step: {"state_dict": {"w": torch.ones(3)}, "train_state": {"step": step}}  # noqa: E731
    for step in (2, 4, 6):
        checkpoints.save(step, state(step), best=2)
    for step in (4, 6):
        (checkpoints.path(step) / "state.json").write_text("{}")
    assert checkpoints.load_newest(print)[0] == 2
    checkpoints.save(3, state(3), best=2)
    assert checkpoints.steps() == [3, 2]


def test_state_of_the_optimizer_that_is_not_finite_is_not_written(tmp_path):
    state = {"state_dict": {"w": torch.ones(3)}, "optimizer": {"w": {"exp_avg_sq": torch.tensor([1.0, torch.inf])}}}
    with pytest.raises(Exception, match="optimizer/w/exp_avg_sq is not finite"):
        save_checkpoint(tmp_path / "step-00000001", state)
    assert not list(tmp_path.iterdir())
