"""`glocal recommend` as a person calls it."""

import json
import os
import signal
import subprocess
import sys
from functools import partial

import pytest

from glocal.recommend import RULE
from tests.cli.conftest import assert_written_again
from tests.data.making import damage
from tests.shapes import CLASSES, write_folder

QUICK = ("--budget", "1ep", "--seeds", "1", "--device", "cpu")


@pytest.fixture(autouse=True)
def own_place(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOCAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("glocal.recommend.job.TIMING_SECONDS", 0.02)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def call(command):
    return partial(command, "recommend")


def test_from_a_folder_to_backbones_and_a_page(call, command, tmp_path):
    write_folder(tmp_path / "data")
    code, out, err = call("data", *QUICK, "--out", "found")
    assert code == 0, err
    results = json.loads((tmp_path / "found/results.json").read_text())
    said = " ".join(out.split())
    assert results["command"] == f"glocal recommend data {' '.join(QUICK)} --out found"
    assert results["finding"]["sentence"] in said
    for one in results["recommended"]:
        assert f"{one['model']}: {one['reason']} ({one['source']})" in said
    assert 2 <= len(results["recommended"]) == len(RULE[results["finding"]["kind"]]) <= 3
    assert all(caveat in said for caveat in results["caveats"])
    assert results["next"] in said
    assert out.rstrip().endswith("Report: found/report.html")
    assert results["recommended"][0]["model"] in (tmp_path / "found/report.html").read_text()
    assert "3 classes, 48 training and 12 validation images" in " ".join(err.split())
    assert "reference 1 of 1" in err
    assert_written_again(command, tmp_path / "found")


def test_without_out_a_new_folder_is_made_and_named(call, tmp_path):
    write_folder(tmp_path / "data", 30)
    code, out, _ = call("data", *QUICK)
    assert code == 0
    (folder,) = (tmp_path / "runs").glob("recommend-data-*")
    assert f"Report: runs/{folder.name}/report.html" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fotos",), "got fotos, which is neither"),
        (("textur",), "nearest: texture"),
        (("pathfinder:3",), "a distance (length of a contour)"),
        (("data", "--budget", "soon"), "expected an amount above 0"),
        (("data", "--seeds", "0"), "from 1 to 20"),
        (("data", "--image-size", "16"), "expected 32 to 1024 pixels, got 16"),
        (("data", "--device", "tpu"), "device: expected"),
        (("data", "--on-error", "ignore"), "expected stop or skip"),
        (("data", "--out", "data/taken/x"), "cannot write"),
        (("data", "--sedes", "1"), "No such option"),
        ((), "Missing argument"),
    ],
)
def test_a_wrong_call_exits_with_2(call, tmp_path, arguments, message):
    write_folder(tmp_path / "data", 30)
    (tmp_path / "data/taken").write_text("a file")
    code, _, err = call(*arguments)
    assert code == 2
    assert message in err
    assert not (tmp_path / "runs").exists()


def test_damaged_files_stop_it_or_are_skipped_and_counted(call, tmp_path):
    write_folder(tmp_path / "data", 280)
    bad = damage(tmp_path / "data", list(CLASSES))
    code, _, err = call("data", *QUICK, "--out", "stopped")
    assert code == 2
    assert f"got {len(bad)} unreadable" in err
    assert not (tmp_path / "stopped").exists()
    code, _, err = call("data", *QUICK, "--out", "out", "--on-error", "skip")
    assert code == 0, err
    assert json.loads((tmp_path / "out/results.json").read_text())["data"]["skipped"] == len(bad)
    assert f"{len(bad)} files were skipped" in (tmp_path / "out/report.html").read_text()


def test_names_from_outside_are_only_names(call, tmp_path):
    name = "<script>[red]\x1b[31m"
    write_folder(tmp_path / name, 30)
    code, out, err = call(name, *QUICK, "--out", "out")
    assert code == 0, err
    assert "\x1b" not in out + err
    assert "<script>" not in (tmp_path / "out/report.html").read_text()


def test_ctrl_c_ends_with_130_and_leaves_nothing(tmp_path):
    write_folder(tmp_path / "data", 300)
    command = [sys.executable, "-m", "glocal", "recommend", "data", "--budget", "500ep", "--out", "out"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        said = ""
        while "reference 1 of 3" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        os.killpg(process.pid, signal.SIGINT)
        said += process.stderr.read()
        assert process.wait(30) == 130
    assert said.endswith("Stopped.\n")
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_help_has_examples(call):
    code, out, _ = call("--help")
    assert code == 0
    assert "glocal recommend fashion-mini" in out
    assert "130 stopped by Ctrl-C" in out
