"""kill -9 at any moment, then --resume: the bytes of a job that nobody killed."""

import os
import random
import subprocess
import sys
import time

import pytest

from tests.inference import killed
from tests.inference.making import write_images, write_model

MOMENTS = {"side": 0, "line 1": 0, "line 5": 4, "line 8": 7, "line 21": 20, "complete": 21, "renamed": 21}
"""Moment -> lines that are whole when the job is killed in it."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Model, images and the files of jobs that nobody killed."""
    root = tmp_path_factory.mktemp("whole")
    model, images = write_model(root / "model"), write_images(root / "images", 21, bad=(3, 9))
    for suffix in (".jsonl", ".csv"):
        killed.job(model, images, root / f"whole{suffix}", resume=False)
    return model, images, {suffix: (root / f"whole{suffix}").read_bytes() for suffix in (".jsonl", ".csv")}


@pytest.fixture(scope="module")
def stopped(whole, tmp_path_factory):
    """The folder of the jobs that were killed, and the moment of each file."""
    model, images, expected = whole
    folder = tmp_path_factory.mktemp("killed")
    aims = {folder / f"{i}{suffix}": moment for suffix in expected for i, moment in enumerate(MOMENTS)}
    aims[folder / "control.jsonl"] = "line 8"
    arguments = [str(part) for out, moment in aims.items() for part in (out, moment)]
    command = [sys.executable, "-m", "tests.inference.killed", str(model), str(images), *arguments]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    return folder, aims


def test_killed_at_aimed_moments(whole, stopped):
    model, images, expected = whole
    folder, aims = stopped
    for out, moment in aims.items():
        if out.stem == "control":
            continue
        part = out.with_name(f"{out.name}.part")
        written = (out if moment == "renamed" else part).read_bytes()
        header = out.suffix == ".csv"
        assert max(0, written.count(b"\n") - header) == MOMENTS[moment], moment
        assert (not written or written.endswith(b"\n")) != moment.startswith("line"), moment
        killed.job(model, images, out, resume=True)
        assert out.read_bytes() == expected[out.suffix], (out, moment)
        assert [file.name for file in folder.glob(f"{out.name}*")] == [out.name]
    assert not list(folder.glob(".tmp-*"))


def test_negative_control_to_go_on_without_cutting_is_noticed(whole, stopped, monkeypatch):
    """The same aim breaks a writer that trusts what it finds, and the harness sees it."""
    model, images, expected = whole
    out = stopped[0] / "control.jsonl"

    def trust(path, lines, paths):
        content = path.read_bytes()
        return content.count(b"\n"), 0, len(content)

    monkeypatch.setattr(killed.output, "_whole_lines", trust)
    killed.job(model, images, out, resume=True)
    assert out.read_bytes() != expected[".jsonl"]


@pytest.mark.slow
def test_ten_random_kills_of_the_command(tmp_path):
    model, images = write_model(tmp_path / "model"), write_images(tmp_path / "images", 600, bad=range(0, 600, 50))
    command = [sys.executable, "-m", "glocal", "predict", str(model), str(images), "--batch-size", "3", "--out"]

    def start(out):
        return subprocess.Popen([*command, str(out), "--resume"], start_new_session=True, stderr=subprocess.DEVNULL)

    began = time.monotonic()
    assert start(tmp_path / "whole.jsonl").wait(300) == 0
    took = time.monotonic() - began
    moments = random.Random(0)
    for attempt in range(10):
        out = tmp_path / f"{attempt}.jsonl"
        with start(out) as process:
            time.sleep(moments.uniform(took / 2, took))
            process.kill()
            process.wait()
        with start(out) as process:
            assert process.wait(300) == 0
        assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes(), attempt
        for _ in range(100):  # workers notice within seconds that their parent is gone
            if not alive(process.pid):
                break
            time.sleep(0.1)
        assert not alive(process.pid)


def alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
