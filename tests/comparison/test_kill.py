"""kill -9 at any moment, then --resume: the same results as without it."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from glocal.comparison import compare
from glocal.comparison.store import Store
from tests.comparison.asking import losses, model_files, scores, settings
from tests.shapes import data_source, write_folder

IDS = ["resnet_micro-f1-s0", "vit_micro-f1-s0", "resnet_micro-f1-s1", "vit_micro-f1-s1"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Results and files of a comparison that nobody killed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("glocal.comparison.costs.TIMING_SECONDS", 0.02)
        out = tmp_path_factory.mktemp("whole")
        return compare(data_source(), settings(), out), model_files(out)


def kill(out, writer, moment, number):
    aim = [sys.executable, "-m", "tests.comparison.killed", str(out), writer, moment, str(number)]
    process = subprocess.run(aim, capture_output=True, text=True, timeout=120)
    assert process.returncode == -signal.SIGKILL, process.stderr


@pytest.mark.parametrize(
    ("moment", "number", "finished"),
    [
        pytest.param("files", 2, 1, marks=pytest.mark.slow),
        pytest.param("complete", 1, 0, marks=pytest.mark.slow),
        ("in place", 3, 3),
    ],
)
def test_killed_inside_the_write_of_a_record(whole, tmp_path, moment, number, finished):
    kill(tmp_path, "atomic", moment, number)
    store = Store(tmp_path)
    assert [store.record(run_id) is not None for run_id in IDS] == [True] * finished + [False] * (4 - finished)
    assert not store.damaged
    results = compare(data_source(), settings(), tmp_path, resume=True)
    assert (scores(results), losses(results)) == (scores(whole[0]), losses(whole[0]))
    assert model_files(tmp_path) == whole[1]
    assert not list(tmp_path.rglob("*unfinished*"))


def test_negative_control_a_naive_writer_leaves_a_damaged_record(whole, tmp_path):
    """The same aim breaks a writer that is not atomic, and the harness sees it."""
    kill(tmp_path, "naive", "files", 2)
    store = Store(tmp_path)
    assert store.record(IDS[0]) is not None
    assert store.record(IDS[1]) is None
    assert list(store.damaged) == [IDS[1]]


COMMAND = [sys.executable, "-m", "glocal", "compare", "data", "--models", "resnet_micro,vit_micro", "--seeds", "2"]
COMMAND += ["--budget", "3ep", "--device", "cpu", "--image-size", "32", "--out", "out", "--resume"]


def others(group):
    """Processes of a group that are still there."""
    shown = subprocess.run(["ps", "-o", "pid=,stat=", "-g", str(group)], capture_output=True, text=True).stdout
    return [line for line in shown.splitlines() if " Z" not in line]


@pytest.mark.slow
def test_ten_random_kills_of_the_command(tmp_path):
    write_folder(tmp_path / "data", num_images=300)
    environment = {**os.environ, "GLOCAL_CACHE": str(tmp_path / "cache")}

    def start(place):
        place.mkdir(exist_ok=True)
        if not (place / "data").exists():
            (place / "data").symlink_to(tmp_path / "data")
        with (place / "errors.txt").open("w") as errors:
            return subprocess.Popen(
                COMMAND, cwd=place, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=errors
            )

    began = time.monotonic()
    with start(tmp_path / "whole") as process:
        assert process.wait(600) == 0, (tmp_path / "whole/errors.txt").read_text()
    took = time.monotonic() - began
    expected = json.loads((tmp_path / "whole/out/results.json").read_text())
    files = model_files(tmp_path / "whole/out")

    moments = random.Random(0)
    for attempt in range(10):
        place = tmp_path / f"killed-{attempt}"
        with start(place) as process:
            time.sleep(moments.uniform(0, took))
            process.kill()
            process.wait()
            deadline = time.monotonic() + 30  # the server that forks may still be importing
            while others(process.pid) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert not others(process.pid), "a run goes on without the command that began it"
        with start(place) as process:
            assert process.wait(600) == 0, (place / "errors.txt").read_text()
        results = json.loads((place / "out/results.json").read_text())
        assert (scores(results), losses(results)) == (scores(expected), losses(expected)), attempt
        assert model_files(place / "out") == files, attempt
