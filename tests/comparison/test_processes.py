import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from glocal.comparison import Run
from glocal.comparison.processes import run_side_by_side, share_cores
from glocal.comparison.store import open_store
from glocal.errors import GlocalError
from glocal.training import TrainingProgress


@pytest.mark.parametrize(
    ("num_runs", "cores", "memory_gib", "run_gib", "expected"),
    [
        (9, 2, 16, 0.1, (2, 1)),
        (1, 8, 64, 0.1, (1, 8)),
        (3, 8, 64, 0.1, (3, 2)),
        (9, 8, 16, 1.0, (4, 2)),  # half of the memory for runs of 2 GiB
        (9, 8, 2, 9.0, (1, 8)),
    ],
)
def test_cores_and_memory_are_shared(num_runs, cores, memory_gib, run_gib, expected):
    assert share_cores(num_runs, cores, memory_gib * 1024, run_gib * 1024) == expected


class Pretender:
    """In the place of a Runner: reports and ends as the run's model says."""

    def execute(self, run, store, progress, until):
        progress(TrainingProgress(0.5, 1.0, run.seed, 0.1, 1.0, 1.0, None))
        if run.model == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if run.model == "lasts":
            time.sleep(600)
        if run.model == "full disk":
            raise GlocalError("cannot write")
        entry = {"id": run.id, "status": "ok", "process": os.getpid()}
        store.write(run.id, entry, lambda folder: None)
        return entry


def test_each_run_has_a_process_and_one_that_dies_has_failed(tmp_path):
    runs = [Run(model, 1.0, seed) for seed in (0, 1) for model in ("lives", "dies")]
    told = []
    with open_store(tmp_path, {}, resume=False) as store:
        run_side_by_side(Pretender(), runs, store, 2, 1, lambda run, event: told.append((run, event)))
        records = [store.record(run.id) for run in runs]
    assert [run for run, event in told if event is None] == runs
    assert sorted(event.step for _, event in told if isinstance(event, TrainingProgress)) == [0, 0, 1, 1]
    entries = {run: event for run, event in told if isinstance(event, dict)}
    assert [entries[run] for run in runs] == records
    assert [record["status"] for record in records] == ["ok", "failed", "ok", "failed"]
    assert "its process died (signal SIGKILL), probably out of memory" in records[1]["error"]
    assert len({os.getpid(), records[0]["process"], records[2]["process"]}) == 3


def test_runs_end_when_the_caller_stops(tmp_path):
    def stop(run, event):
        if event is None and run.seed == 1:
            raise KeyboardInterrupt

    began = time.monotonic()
    with open_store(tmp_path, {}, resume=False) as store, pytest.raises(KeyboardInterrupt):
        run_side_by_side(Pretender(), [Run("lasts", 1.0, seed) for seed in range(9)], store, 2, 1, stop)
    assert time.monotonic() - began < 60
    assert not list(store.runs.iterdir())


def test_a_record_that_cannot_be_written_ends_all(tmp_path):
    runs = [Run("full disk", 1.0, 0), Run("lives", 1.0, 0)]
    with open_store(tmp_path, {}, resume=False) as store, pytest.raises(GlocalError, match="cannot write"):
        run_side_by_side(Pretender(), runs, store, 1, 1, lambda *_: None)
    assert not list(store.runs.iterdir())


@pytest.mark.parametrize("resume", [False, True])
def test_a_script_without_main_guard_is_refused_and_no_run_has_failed(tmp_path, resume):
    script, out = tmp_path / "script.py", tmp_path / "out"
    script.write_text(f"""
from pathlib import Path
from glocal.comparison import compare, costs
from tests.comparison.asking import settings
from tests.shapes import data_source
costs.TIMING_SECONDS = 0.02
compare(data_source(), settings(["resnet_micro"], seeds=1), Path({str(out)!r}), side_by_side=True, resume={resume})
""")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert error.startswith("glocal.errors.GlocalError: main: expected a script that processes can import")
    assert f"got {script}, whose import ended with exit code 1" in error
    assert error.endswith("its calls under `if __name__ == '__main__':`, or use side_by_side=False")
    assert not list(out.glob("runs/*"))
    assert out.exists() == resume
