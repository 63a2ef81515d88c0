import errno
import json
import os
import signal
import subprocess
import sys

import pytest

from glocal.comparison.store import open_store
from glocal.errors import GlocalError

PLAN = {"budget": "5ep", "recipe": {"lr": 0.1}}


def write(store, name="one", text="weights"):
    store.write(name, {"top1": 0.5}, lambda folder: (folder / "model.safetensors").write_text(text))


def test_a_record_comes_back(tmp_path):
    with open_store(tmp_path / "out", PLAN, resume=False) as store:
        assert store.record("one") is None
        write(store)
        assert store.record("one") == {"top1": 0.5}
        assert not store.damaged
        write(store, text="newer")
        assert (store.runs / "one" / "model.safetensors").read_text() == "newer"


def test_a_record_that_cannot_be_written_is_an_error_and_leaves_the_others(tmp_path):
    def fill_the_disk(folder):
        (folder / "model.safetensors").write_text("wei")
        raise OSError(errno.ENOSPC, "No space left on device")

    with open_store(tmp_path, PLAN, resume=False) as store:
        write(store)
        with pytest.raises(GlocalError, match=r"cannot write the record of two .*No space left"):
            store.write("two", {}, fill_the_disk)
        assert store.record("one") is not None
        assert store.record("two") is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "model.safetensors").write_text("weight"),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "record.json").write_text('{"run": {'),
        lambda folder: (folder / "record.json").write_text("[]"),
        lambda folder: (folder / "record.json").unlink(),
    ],
)
def test_a_damaged_record_is_noticed(tmp_path, spoil):
    with open_store(tmp_path, PLAN, resume=False) as store:
        write(store)
        spoil(store.runs / "one")
        assert store.record("one") is None
        assert list(store.damaged) == ["one"]


def test_what_was_not_finished_is_cleared_away(tmp_path):
    with open_store(tmp_path, PLAN, resume=False) as store:
        write(store)
        (store.runs / ".unfinished-two").mkdir()
        (store.runs / ".unfinished-two" / "model.safetensors").touch()
        (tmp_path / ".tmp-1-a").touch()
    with open_store(tmp_path, PLAN, resume=True) as store:
        assert [path.name for path in store.runs.iterdir()] == ["one"]
        assert not list(tmp_path.glob(".tmp-*"))


def test_resume_of_nothing_begins(tmp_path):
    with open_store(tmp_path / "a" / "b", PLAN, resume=True) as store:
        assert json.loads((store.out / "plan.json").read_text()) == PLAN


def test_without_resume_a_comparison_is_not_touched(tmp_path):
    with open_store(tmp_path, PLAN, resume=False):
        pass
    with pytest.raises(GlocalError, match="--resume or choose another --out"), open_store(tmp_path, PLAN, resume=False):
        pass


def test_changes_are_listed_and_refused(tmp_path):
    with open_store(tmp_path, PLAN, resume=False):
        pass
    changed = {"budget": "3ep", "recipe": {"lr": 0.2}, "new": 1}
    with pytest.raises(GlocalError) as caught, open_store(tmp_path, changed, resume=True):
        pass
    for line in ('budget: was "5ep", is "3ep"', "recipe.lr: was 0.1, is 0.2", "new: was null, is 1"):
        assert line in str(caught.value)


def test_runs_without_a_plan_are_refused(tmp_path):
    (tmp_path / "runs" / "one").mkdir(parents=True)
    with pytest.raises(GlocalError, match=r"no plan\.json"), open_store(tmp_path, PLAN, resume=True):
        pass


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/none"])
def test_a_place_that_cannot_be_written_is_named(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(GlocalError, match="cannot write"), open_store(tmp_path / place, PLAN, resume=False):
        pass


HOLD = """
import sys, time
from pathlib import Path
from glocal.comparison.store import open_store
with open_store(Path(sys.argv[1]), {}, resume=True):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_held_by_one_process_and_let_go_when_it_is_killed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(GlocalError, match=f"in use by process {holder.pid}"):
                open_store(tmp_path, {}, resume=True).__enter__()
        finally:
            os.kill(holder.pid, signal.SIGKILL)
    with open_store(tmp_path, {}, resume=True):
        pass
