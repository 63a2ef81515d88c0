"""`glocal eval` as a person calls it."""

import json
import os
from functools import partial

import pytest

import glocal.cli
from glocal.schema import EvalResults
from tests.fields import faults
from tests.inference.making import write_model
from tests.shapes import CLASSES, write_folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("place")
    write_model(root / "run", classes=(*CLASSES, "\x1b[2J[red]"))
    write_folder(root / "photos", 30)
    write_folder(root / "bad", 30)
    (root / "bad" / "down" / "\x1b[2J.png").write_bytes(b"no image")
    write_folder(root / "unknown", 30)
    (root / "unknown" / "down").rename(root / "unknown" / "dwn")
    for run in ("a-f1-s0", "b-f1-s0"):
        write_model(root / "compared" / "runs" / run)
    return root


@pytest.fixture
def call(command, monkeypatch, place, tmp_path_factory):
    monkeypatch.chdir(place)
    monkeypatch.setenv("GLOCAL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    return partial(command, "eval")


def test_the_table_and_the_file_say_the_same(call, tmp_path):
    code, out, _ = call("run", "photos", "--out", str(tmp_path / "r.json"), "--workers", "0", "--part", "all")
    assert code == 0
    results = json.loads((tmp_path / "r.json").read_text())
    assert results["glocal"] == glocal.__version__
    assert faults(results, EvalResults) == []
    assert "resnet_micro on 30 images of photos (all: all images of the folder)" in out
    numbers = [f"{100 * results['top1']:.2f}", "-", f"{100 * results['ece']:.2f}", f"{results['nll']:.2f}"]
    assert numbers in [line.split() for line in out.splitlines()]
    worst = results["worst_classes"][0]
    assert any(line.split()[:1] == [worst] for line in out.splitlines())
    pair = results["confusions"][0]
    assert any(line.split() == [pair["true"], pair["predicted"], str(pair["count"])] for line in out.splitlines())
    assert "Classes of the model without images: \\x1b[2J[red]" in out


def test_the_part_held_out_is_the_default(call, tmp_path):
    code, out, _ = call("run", "photos", "--out", str(tmp_path / "r.json"))
    assert code == 0
    assert "on 6 images of photos (val: 20% of each class held out for val, split seed 0)" in out
    assert json.loads((tmp_path / "r.json").read_text())["data"]["part"] == "val"
    assert "split seed 3" in call("run", "photos", "--split-seed", "3")[1]


def test_bad_images_stop_or_are_listed(call):
    code, _, err = call("run", "bad", "--part", "all")
    assert code == 2
    assert "down/\\x1b[2J.png: not a readable" in err
    code, out, err = call("run", "bad", "--part", "all", "--on-error", "skip")
    assert code == 0
    assert "Unreadable images skipped: 1" in out
    assert "down/\\x1b[2J.png: not a readable" in out
    assert not {"\x1b"} & set(out + err)


def test_runs_to_choose_from_are_listed(call):
    code, _, err = call("compared", "photos")
    assert code == 2
    assert "choose one:\n  compared/runs/a-f1-s0\n  compared/runs/b-f1-s0" in err
    assert call("compared/runs/b-f1-s0", "photos")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing argument"),
        (("run",), "Missing argument"),
        (("missing", "photos"), "missing: no such file or folder; check the path"),
        (("run", "missing"), "expected a folder or one of fashion-mini"),
        (("run", "photos", "--part", "vall"), "part: expected one of train, val, all, got 'vall'; nearest: val"),
        (("run", "photos", "--on-error", "x"), "on-error: expected one of stop, skip, got 'x'"),
        (("run", "photos", "--device", "tpu"), "device: expected auto or one of"),
        (("run", "photos", "--out", "no/r.json"), "out: expected a file in an existing folder, got no/r.json"),
        (("run", "unknown", "--part", "all"), "expected classes that the model knows, got dwn; nearest: down"),
        (("cut.safetensors", "photos"), "cut.safetensors: "),
    ],
)
def test_bad_calls_say_so_and_exit_with_2(call, place, arguments, message):
    (place / "cut.safetensors").write_bytes((place / "run/model.safetensors").read_bytes()[:-1])
    before = sorted(os.listdir(place))
    code, out, err = call(*arguments)
    assert code == 2
    assert message in " ".join((out + err).split())
    assert sorted(os.listdir(place)) == before
