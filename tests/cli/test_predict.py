"""`glocal predict` as a person calls it."""

import csv
import json
import os
import subprocess
import sys
from functools import partial

import pytest

from glocal.cli import predict  # noqa: F401  (registers the command)
from tests.inference.making import write_images, write_model

CLASSES = ("=1+2", "a\x1b[31m", "[red]x")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("place")
    write_model(root / "run", classes=CLASSES)
    images = write_images(root / "photos", 12, bad=(2, 5))
    for name in ("\x1b[2J.png", "[bold]b.png", "-1.png", "\udcff\u202e.png"):
        (images / name).write_bytes((images / "000.png").read_bytes())
    write_images(root / "bad", 2, bad=(0, 1))
    return root


@pytest.fixture
def call(command, monkeypatch, place):
    monkeypatch.chdir(place)
    return partial(command, "predict")


def test_a_file_of_lines(call, place, tmp_path):
    code, out, err = call("run", "photos", "--out", str(tmp_path / "o.jsonl"), "--top-k", "2", "--workers", "0")
    assert (code, out) == (0, "")
    assert f"16 images, 2 unreadable; results in {tmp_path}" in err.replace("\n", "")
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [line["path"] for line in lines] == sorted(f"photos/{name}" for name in os.listdir(place / "photos"))
    assert sum(line["error"] is not None for line in lines) == 2
    assert {len(line["top"]) for line in lines} == {0, 2}
    code, out, err = call("run", "photos", "--out", str(tmp_path / "o.jsonl"))
    assert code == 2
    assert "is there already" in err
    code, out, err = call(
        "run", "photos", "--out", str(tmp_path / "o.jsonl"), "--top-k", "2", "--workers", "0", "--resume"
    )
    assert code == 0
    assert "16 images, 16 of them before, 2 unreadable" in err


def test_no_cell_is_a_formula(call, tmp_path, monkeypatch, place):
    monkeypatch.chdir(place / "photos")
    call("../run", "-1.png", "--out", "x.csv")  # an option, not a file: refused
    code, _, _ = call("../run", "--out", str(tmp_path / "o.csv"), "--workers", "0", "--", "-1.png", "000.png")
    assert code == 0
    with (tmp_path / "o.csv").open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert "'-1.png" in cells
    assert "'=1+2" in cells
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert not [cell for cell in cells if "\x1b" in cell]


def test_names_cannot_drive_the_terminal(call):
    code, out, err = call("run", "photos", "--workers", "0")
    assert code == 0
    for shown in ("photos/[bold]b.png", "photos/\\x1b[2J.png", "\\udcff\\u202e.png", "=1+2", "a\\x1b[31m", "[red]x"):
        assert shown in out
    assert not {"\x1b", "\u202e"} & set(out + err)
    assert "empty file" in out
    assert len([line for line in out.splitlines() if " %" in line]) == 14


def test_all_bad_is_exit_code_1(call, tmp_path):
    code, _, err = call("run", "bad", "--out", str(tmp_path / "o.jsonl"))
    assert code == 1
    assert "2 images, 2 unreadable" in err
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing argument"),
        (("run",), "Missing argument"),
        (("missing", "photos"), "missing: no such file or folder; check the path"),
        (("photos", "photos"), "expected a folder with model.safetensors, got one without"),
        (("photos/000.png", "photos"), "expected a .safetensors file, got another"),
        (("cut.safetensors", "photos"), "is damaged or not a safetensors file"),
        (("run", "nothing"), "got nothing, which is not there"),
        (("run", "photos", "--out", "o.txt"), "expected a name that ends in .jsonl or .csv"),
        (("run", "photos", "--out", "no/o.csv"), "expected an existing folder, got no; make it, or choose another"),
        (("run", "photos", "--resume"), "--resume needs --out"),
        (("run", "photos", "--top-k", "0"), "top-k: expected at least 1"),
        (("run", "photos", "--engine", "spark"), "engine: expected one of local, ray"),
        (("run", "photos", "--device", "tpu"), "device: expected auto or one of"),
        (("run", "photos", "--colour"), "No such option"),
    ],
)
def test_bad_calls_say_so_and_exit_with_2(call, place, arguments, message):
    (place / "cut.safetensors").write_bytes((place / "run/model.safetensors").read_bytes()[:100])
    before = sorted(os.listdir(place))
    code, out, err = call(*arguments)
    assert code == 2
    assert message in " ".join((out + err).split())
    assert sorted(os.listdir(place)) == before


def test_ctrl_c_keeps_what_is_done(call, tmp_path, monkeypatch):
    import glocal.inference.predict as module

    real = module._local_batches

    def interrupted(*arguments):
        for number, batch in enumerate(real(*arguments)):
            if number == 2:
                raise KeyboardInterrupt
            yield batch

    arguments = ("run", "photos", "--workers", "0", "--batch-size", "5", "--out", str(tmp_path / "o.jsonl"))
    monkeypatch.setattr(module, "_local_batches", interrupted)
    code, _, err = call(*arguments)
    assert code == 130
    assert "Stopped. To resume: glocal predict run photos" in " ".join(err.split())
    assert " --resume" in err
    monkeypatch.setattr(module, "_local_batches", real)
    code, _, err = call(*arguments, "--resume")
    assert code == 0
    assert "16 images, 10 of them before" in err


def test_the_command_is_registered_and_help_has_examples():
    command = [sys.executable, "-X", "importtime", "-m", "glocal"]
    both = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=60)
    assert {"eval", "predict"} <= {line.split()[0] for line in both.stdout.splitlines() if line.split()}
    assert not [
        line for line in both.stderr.splitlines() if line.split("|")[-1].strip() in ("torch", "numpy", "rich.table")
    ]
    for name in ("predict", "eval"):
        shown = subprocess.run(
            [*command[:1], "-m", "glocal", name, "--help"], capture_output=True, text=True, timeout=60
        )
        assert f"glocal {name} run photos" in shown.stdout
        assert "Exit codes:" in shown.stdout
