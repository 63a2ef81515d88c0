"""`glocal compare` as a person calls it."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from functools import partial

import pytest

from tests.cli.conftest import assert_written_again
from tests.comparison.asking import losses, scores
from tests.data.making import damage, png_header
from tests.shapes import CLASSES, write_folder

QUICK = ("--models", "resnet_micro,vit_micro", "--budget", "1ep", "--seeds", "1", "--device", "cpu")


@pytest.fixture(autouse=True)
def own_place(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOCAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("glocal.comparison.costs.TIMING_SECONDS", 0.02)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def call(command):
    return partial(command, "compare")


def results_of(out):
    return json.loads((out / "results.json").read_text())


def test_a_comparison_from_folder_to_report(call, command, tmp_path):
    write_folder(tmp_path / "data")
    code, out, err = call("data", *QUICK, "--out", "first")
    assert code == 0
    results = results_of(tmp_path / "first")
    assert results["verdict"]["sentence"] in " ".join(out.split())
    assert "Some models have one seed only" in " ".join(out.split())
    assert out.rstrip().endswith("Report: first/report.html")
    assert "3 classes, 48 training and 12 validation images" in " ".join(err.split())
    assert re.search(
        r"resnet_micro-f1-s0: epoch \d\.\d, loss \d\.\d+, top-1 \d+\.\d %, [\d,]+ images/s", " ".join(err.split())
    )
    page = (tmp_path / "first/report.html").read_text()
    assert "resnet_micro" in page
    assert "analysis" not in results  # it is asked for
    assert results["verdict"]["sentence"].split(" ")[1] in page
    assert (tmp_path / "first/results.csv").read_text().count("\n") == 3
    assert results["command"].startswith("glocal compare data --models resnet_micro,vit_micro")

    code, out, _ = call("data", *QUICK, "--out", "first", "--resume")
    assert code == 0
    assert scores(results_of(tmp_path / "first")) == scores(results)
    assert_written_again(command, tmp_path / "first")


def test_analyze_says_why_too(call, tmp_path):
    write_folder(tmp_path / "data", 30)
    code, out, err = call("data", *QUICK, "--out", "out", "--analyze")
    assert code == 0
    for model in ("resnet_micro", "vit_micro"):
        assert err.count(f"{model}-f1-s0: analyzing ...") == 1
        assert re.search(rf"{model}-f1-s0: analyzed in \d+\.\d s", err)
    assert [model["failed"] for model in results_of(tmp_path / "out")["analysis"]["models"]] == [{}, {}]
    page = (tmp_path / "out/report.html").read_text()
    assert "Why: analysis of the models" in page
    assert page.count("data:image/png") >= 2 * 3 + 4 * 2
    assert out.rstrip().endswith("Report: out/report.html")


def test_a_failed_analysis_is_a_note_and_exit_code_1(call, tmp_path, monkeypatch):
    from glocal.comparison.analysis import PARTS

    def fail(*_):
        raise RuntimeError("[red]no\x1b more")

    for name in PARTS:
        monkeypatch.setitem(PARTS, name, fail)
    write_folder(tmp_path / "data", 30)
    code, out, err = call("data", "--models", "vit_micro", *QUICK[2:], "--out", "out", "--analyze")
    assert code == 1
    assert "vit_micro-f1-s0: fourier failed: RuntimeError: [red]no\\x1b more" in out
    assert "\x1b" not in out + err
    assert results_of(tmp_path / "out")["runs"][0]["status"] == "ok"


def test_without_out_a_new_folder_is_made_and_named_first_and_last(call, tmp_path):
    write_folder(tmp_path / "data", 30)
    code, out, err = call("data", "--models", "vit_micro", *QUICK[2:])
    assert code == 0
    (folder,) = (tmp_path / "runs").glob("compare-data-*")
    assert f"runs/{folder.name}" in "".join(err.split("\n"))
    assert f"Report: runs/{folder.name}/report.html" in out


def test_hostile_class_names_pass_through_to_the_report(call, tmp_path):
    write_folder(tmp_path / "plain", 30)
    names = ("<script>alert(1)", "=cmd()", "[red]\x1b[31m")
    (tmp_path / "data").mkdir()
    for old, new in zip(CLASSES, names, strict=True):
        (tmp_path / "plain" / old).rename(tmp_path / "data" / new)
    code, out, err = call("data", "--models", "vit_micro", *QUICK[2:], "--out", "out")
    assert code == 0
    assert "\x1b" not in out + err
    assert results_of(tmp_path / "out")["data"]["classes"] == sorted(names)
    assert "<script>alert" not in (tmp_path / "out/report.html").read_text()
    config = json.loads((tmp_path / "out/runs/vit_micro-f1-s0/config.json").read_text())
    assert config["label_names"] == sorted(names)


def test_20_damaged_files_among_300_change_nothing(call, tmp_path):
    write_folder(tmp_path / "data", 280)
    write_folder(tmp_path / "clean", 280)
    bad = damage(tmp_path / "data", list(CLASSES))
    code, _, err = call("data", *QUICK, "--out", "stopped")
    assert code == 2
    assert "20" in err
    assert "--on-error skip" in err
    assert not (tmp_path / "stopped").exists()
    for name, extra in (("data", ("--on-error", "skip")), ("clean", ())):
        code, *_ = call(name, *QUICK, "--out", f"of-{name}", *extra)
        assert code == 0
    skipped, cleaned = results_of(tmp_path / "of-data"), results_of(tmp_path / "of-clean")
    assert [entry["path"] for entry in skipped["data"]["skipped"]] == bad
    assert (scores(skipped), losses(skipped)) == (scores(cleaned), losses(cleaned))


def test_a_failed_run_is_exit_code_1(call, tmp_path):
    write_folder(tmp_path / "data", 30)
    (tmp_path / "recipe.yaml").write_text("lr: 1e30\nwarmup: 0\nclip_grad: 0\nbatch_size: 4\n")
    code, _, err = call("data", *QUICK, "--recipe", "recipe.yaml", "--out", "out")
    assert code == 1
    assert "vit_micro-f1-s0 failed:" in err
    assert "finite" in err or "the loss became" in err
    assert (tmp_path / "out/report.html").exists()


@pytest.fixture
def bad_places(tmp_path):
    write_folder(tmp_path / "data", 12)
    (tmp_path / "empty class" / "a").mkdir(parents=True)
    write_folder(tmp_path / "empty class", 12)
    write_folder(tmp_path / "whole", 12)
    (tmp_path / "one").mkdir()
    (tmp_path / "whole" / "down").rename(tmp_path / "one" / "down")
    write_folder(tmp_path / "extra/train", 12)
    write_folder(tmp_path / "extra/val", 12)
    (tmp_path / "extra/val/down").rename(tmp_path / "extra/val/downwards")
    write_folder(tmp_path / "large", 12)
    (tmp_path / "large/down/bomb.png").write_bytes(png_header(13_000, 13_000))
    (tmp_path / "file").touch()


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (("data", "--models", "botnet5"), ("unknown model 'botnet5'", "nearest: botnet50")),
        (("data", "--models", "cvt_micro:projektion=linear"), ("no keyword 'projektion'; nearest: projection",)),
        (("nowhere",), ("expected a folder or one of fashion-mini",)),
        (("fashion-mimi",), ("nearest: fashion-mini",)),
        (("empty class",), ("readable images in each class, got a (0)",)),
        (("one",), ("at least 2 classes, got 1: down",)),
        (("extra",), ("downwards",)),
        (("large",), ("bomb.png", "limit")),
        (("data", "--budget", "lots"), ("such as 5ep", "'lots'")),
        (("data", "--out", "file/below"), ("cannot write to file/below (Not a directory)",)),
        (("data", "--out", "/proc/none"), ("cannot write to /proc/none",)),
        (("data", "--device", "tpu"), ("device",)),
        (("data", "--fraction", "2"), ("at most 1",)),
        (("data", "--fraction", "some"), ("'some'",)),
        (("data", "--image-size", "99999"), ("99999",)),
        (("data", "--seeds", "0"), ("got 0",)),
        (("data", "--mode", "finetune"), ("--weights resnet_micro=FILE",)),
        (("data", "--weights", "resnet_micro"), ("NAME=FILE",)),
        (("data", "--recipe", "none.yaml"), ("none.yaml", "cannot be read")),
        (("data", "--resume"), ("--resume needs --out",)),
        (("data", "--task", "detect", "--analyze"), ("--analyze is for --task classify, got --task detect",)),
        (("data", "--task", "segment", "--analyze"), ("--analyze is for --task classify, got --task segment",)),
    ],
)
def test_a_bad_call_is_one_clear_message_and_exit_code_2(call, bad_places, tmp_path, arguments, messages):
    code, out, err = call(*arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("Error: ")
    for message in messages:
        assert message in err
    assert not (tmp_path / "runs").exists()
    assert "Measuring" not in err


def test_ctrl_c_says_what_is_kept_and_how_to_go_on(tmp_path):
    write_folder(tmp_path / "data")
    arguments = "data --models resnet_micro --seeds 2 --budget 20s --device cpu --out 'out dir'"
    command = [sys.executable, "-m", "glocal", "compare", *shlex.split(arguments)]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        said = ""
        while "epoch" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        os.killpg(process.pid, signal.SIGINT)
        said += process.stderr.read()
        assert process.wait(30) == 130
    assert "Traceback" not in said
    assert "Stopped. 0 of 2 runs are finished and kept" in said
    assert said.endswith(f"  glocal compare {arguments} --resume\n")


def test_help_has_examples(call):
    code, out, _ = call("--help")
    assert code == 0
    assert "glocal compare photos --out study --resume" in out


def test_limits_leave_a_model_out_and_are_in_the_report(call, command, tmp_path, monkeypatch):
    monkeypatch.setattr("glocal.comparison.deployment.TIMING_SECONDS", 0.02)
    write_folder(tmp_path / "data", 30)
    code, _, err = call("data", *QUICK, "--out", "none", "--max-params", "1K", "--max-latency", "100s")
    assert code == 2
    assert "limits: expected a model of at most 100,000 ms per image in PyTorch and 0.001M parameters" in err
    assert "nearest: " in err
    assert list((tmp_path / "none/runs").iterdir()) == []

    with monkeypatch.context() as patch:
        patch.setattr("glocal.comparison.job.write_report", lambda *_, **__: None)
        assert call("data", *QUICK, "--search", "exhaustive", "--out", "out")[0] == 0
    rows = results_of(tmp_path / "out")["summary"]
    small, large = sorted(rows, key=lambda row: row["params"])
    between = f"{(small['params'] + large['params']) / 2e3:.3f}K"
    code, out, err = call("data", *QUICK, "--out", "out", "--resume", "--max-params", between)
    assert code == 0
    assert f"left out: {large['model']}: " in " ".join(err.split())
    assert re.search(rf"{large['model']} .*above limits", out)
    assert f"{small['model']} holds the limit: " in " ".join(out.split())
    page = (tmp_path / "out/report.html").read_text()
    assert "<h2>Limits</h2>" in page
    assert page.count("above the limits</span>") == 1
    assert_written_again(command, tmp_path / "out")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--max-latency", "10", "max-latency: expected a positive number and its unit (ms, s), such as 10ms; got '10'"),
        ("--max-params", "-3M", "max-params: expected a positive number and its unit"),
        ("--max-file", "40M", "M is not one of the units"),
        ("--max-memory", "much", "max-memory: expected a positive number and its unit"),
        ("--runtime", "tensorrt", "runtime: expected one of eager, onnxruntime, openvino, got 'tensorrt'"),
        ("--runtime", "openvino", "expected a limit on one of them: --max-latency or --max-file"),
    ],
)
def test_limits_that_are_none(call, tmp_path, option, value, message):
    code, _, err = call("data", *QUICK, "--out", "out", f"{option}={value}")
    assert code == 2
    assert message in " ".join(err.split())
    assert not (tmp_path / "out").exists()


def test_test_images_choose_nothing_and_are_in_the_report(call, command, tmp_path):
    for seed, part in enumerate(("train", "val", "test")):
        write_folder(tmp_path / "data" / part, 30, seed)
    model = ("--models", "resnet_micro", *QUICK[2:])
    code, out, err = call("data", *model, "--out", "out")
    assert code == 0
    assert "30 training, 30 validation and 30 test images" in " ".join(err.split())
    assert err.count("resnet_micro-f1-s0: evaluating on the 30 test images ...") == 1
    assert "On the 30 test images, which chose nothing, resnet_micro reaches " in " ".join(out.split())
    assert "<h2>Test images</h2>" in (tmp_path / "out/report.html").read_text()
    assert_written_again(command, tmp_path / "out")
    code, _, err = call("data", *model, "--out", "out", "--resume")
    assert code == 0
    assert "evaluating" not in err
