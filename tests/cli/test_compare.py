"""`glocal compare` as a person calls it: start to report, wrong calls, bad images, kills at any moment."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

import glocal.cli
from tests.data.making import damage, folder

MODELS = ("--models", "resnet_micro", "--budget", "1ep", "--image-size", "32", "--device", "cpu")
SCORES = ("top1", "top5", "ece", "nll", "per_class", "confusion", "curve", "mistakes")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("GLOCAL_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("COLUMNS", "200")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "glocal", "compare", *map(str, arguments)]


def compare(*arguments: object, code: int = 0) -> subprocess.CompletedProcess:
    result = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300)
    assert "Traceback" not in result.stderr, result.stderr
    assert result.returncode == code, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return folder(tmp_path_factory.mktemp("photos") / "data", {"ant": 20, "bee": 20, "=cmd()": 20})


def scores(out: Path) -> dict[str, list]:
    """What must not depend on where a comparison was stopped: scores, and the trained weights to the bit."""
    runs = {}
    for run in json.loads((out / "results.json").read_text())["runs"]:
        curve = [{k: v for k, v in point.items() if k != "seconds"} for point in run["curve"]]
        weights = (out / run["weights"]).read_bytes()
        runs[run["id"]] = [{**{key: run[key] for key in SCORES}, "curve": curve}, weights]
    return runs


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "out"
    compare(photos, *MODELS, "--seeds", 2, "--out", out)
    return out


def test_from_a_folder_to_a_report(photos, finished):
    results = json.loads((finished / "results.json").read_text())
    assert results["schema"] == "glocal.compare/1"
    assert [run["id"] for run in results["runs"]] == ["resnet_micro-f1-s0", "resnet_micro-f1-s1"]
    for run in results["runs"]:
        assert run["status"] == "ok"
        confusion = torch.tensor(run["confusion"])
        assert confusion.sum().item() == results["data"]["val"] == 12
        assert run["top1"] == pytest.approx(confusion.trace().item() / 12)
        assert run["macs"] > 9e6
        assert run["budget"]["epochs"] == 1
        assert min(run[k] for k in ("train_images_per_s", "latency_ms_b1", "images_per_s_b32", "peak_memory_mib")) > 0
    assert results["summary"][0]["top1_mean"] == pytest.approx(sum(run["top1"] for run in results["runs"]) / 2)
    assert results["verdict"]["most_accurate"] == "resnet_micro"
    assert str(photos) in results["command"]
    report = (finished / "report.html").read_text()
    assert results["verdict"]["sentence"] in report
    assert "'=cmd()" not in report
    assert "=cmd()" in report
    rows = (finished / "results.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["id", "resnet_micro-f1-s0", "resnet_micro-f1-s1"]


def test_the_trained_model_comes_back_from_its_folder(finished):
    run = finished / "runs" / "resnet_micro-f1-s0"
    config = json.loads((run / "config.json").read_text())
    assert "=cmd()" in json.dumps(config)
    model = timm.create_model("resnet_micro", num_classes=3)
    model.load_state_dict(load_file(run / "model.safetensors"))


def test_resume_of_a_finished_comparison_changes_nothing(photos, finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    before = scores(out)
    started = time.perf_counter()
    compare(photos, *MODELS, "--seeds", 2, "--out", out, "--resume")
    assert scores(out) == before
    assert time.perf_counter() - started < 60
    refused = compare(photos, *MODELS, "--seeds", 2, "--out", out, code=2)
    assert "--resume" in refused.stderr
    (tmp_path / "recipe.yaml").write_text("lr: 0.01\n")
    recipe = ("--recipe", tmp_path / "recipe.yaml")
    changed = compare(photos, *MODELS, "--seeds", 2, *recipe, "--out", out, "--resume", code=2)
    assert "lr" in changed.stderr


def kill_and_resume(photos: Path, out: Path, wait) -> None:
    """Start a comparison, kill -9 it and its children when ``wait`` returns, and finish it with --resume."""
    arguments = (photos, *MODELS, "--seeds", 2, "--out", out, "--resume")
    process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               start_new_session=True)  # fmt: skip
    try:
        wait(process)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    compare(*arguments)


def until(path: Path, process: subprocess.Popen) -> None:
    """Wait for a file, or for the end of the process."""
    while not path.exists() and process.poll() is None:
        time.sleep(0.001)


@pytest.mark.parametrize(
    "moment", [pytest.param("plan.json", marks=pytest.mark.slow), "runs/resnet_micro-f1-s0/record.json"]
)
def test_killed_at_a_moment_it_finishes_with_the_same_numbers(photos, finished, tmp_path, moment):
    out = tmp_path / "out"
    kill_and_resume(photos, out, lambda process: until(out / moment, process))
    assert scores(out) == scores(finished)
    assert {path.name for path in (out / "runs").iterdir()} == {"resnet_micro-f1-s0", "resnet_micro-f1-s1"}


@pytest.mark.slow
def test_killed_at_ten_random_moments_it_finishes_with_the_same_numbers(photos, finished, tmp_path):
    moments = random.Random(0)
    for number in range(10):
        out = tmp_path / f"out-{number}"
        pause = moments.random() * 6

        def wait(process: subprocess.Popen, plan: Path = out / "plan.json", pause: float = pause) -> None:
            until(plan, process)
            time.sleep(pause)

        kill_and_resume(photos, out, wait)
        assert scores(out) == scores(finished)


def test_a_record_that_was_not_written_whole_is_run_again(photos, finished, tmp_path):
    """The negative control: what a writer that is not atomic leaves behind is noticed, not believed."""
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    weights = out / "runs" / "resnet_micro-f1-s1" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    result = compare(photos, *MODELS, "--seeds", 2, "--out", out, "--resume")
    assert "resnet_micro-f1-s1 is damaged" in " ".join((result.stdout + result.stderr).split())
    assert scores(out) == scores(finished)


@pytest.mark.slow
def test_damaged_images_are_listed_and_change_nothing(photos, tmp_path):
    mixed = tmp_path / "mixed"
    shutil.copytree(photos, mixed)
    bad = damage(mixed, ["ant", "bee"], count=8)
    stopped = compare(mixed, *MODELS, "--seeds", 1, "--out", tmp_path / "no", code=2)
    assert "bad-00.jpg: empty file" in stopped.stderr
    compare(mixed, *MODELS, "--seeds", 1, "--out", tmp_path / "skip", "--on-error", "skip")
    compare(photos, *MODELS, "--seeds", 1, "--out", tmp_path / "clean")
    assert scores(tmp_path / "skip") == scores(tmp_path / "clean")
    results = json.loads((tmp_path / "skip" / "results.json").read_text())
    assert [skipped["path"] for skipped in results["data"]["skipped"]] == bad
    assert "bad-00.jpg" in (tmp_path / "skip" / "report.html").read_text()


@pytest.mark.slow
def test_a_failed_run_is_reported_and_the_others_go_on(photos, tmp_path):
    (tmp_path / "recipe.yaml").write_text("lr: 1.0e+30\nclip_grad: 0.0\nwarmup: 0.0\n")
    out = tmp_path / "out"
    compare(photos, "--models", "vit_micro,resnet_micro", "--budget", "2ep", "--seeds", 1, "--recipe",
            tmp_path / "recipe.yaml", "--out", out, "--device", "cpu", code=1)  # fmt: skip
    runs = json.loads((out / "results.json").read_text())["runs"]
    assert len(runs) == 2
    assert any(run["status"] == "failed" and run["error"] for run in runs)
    assert "Runs that failed" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("DATA", "--models", "resnet_mikro"), "nearest: resnet_micro"),
        (("missing",), "expected a folder or one of fashion-mini"),
        (("DATA", "--budget", "soon"), "5ep"),
        (("DATA", "--budget", "0ep"), "budget"),
        (("DATA", "--seeds", "0"), "seeds"),
        (("DATA", "--fraction", "1.5"), "fraction"),
        (("DATA", "--device", "gpu9"), "device"),
        (("DATA", "--mode", "guess"), "mode"),
        (("DATA", "--mode", "finetune", "--models", "resnet_micro"), "--weights"),
        (("DATA", "--weights", "resnet_micro"), "NAME=FILE"),
        (("DATA", "--recipe", "nowhere.yaml"), "recipe"),
        (("DATA", "--image-size", "100000"), "image"),
        (("DATA", "--out", "/proc/no"), "out"),
        (("ONE",), "expected at least 2 classes"),
        (("EMPTY",), "expected at least 2 readable images in each class"),
        (("APART",), "val has classes that train has not: cat"),
    ],
)
def test_bad_calls_say_so_before_anything_runs(photos, tmp_path, monkeypatch, capsys, arguments, message):
    places = {"DATA": photos, "ONE": tmp_path / "one", "EMPTY": tmp_path / "empty", "APART": tmp_path / "apart"}
    folder(places["ONE"], {"ant": 5})
    folder(places["EMPTY"], {"ant": 5, "bee": 0})
    folder(places["APART"] / "train", {"ant": 2, "bee": 2})
    folder(places["APART"] / "val", {"ant": 1, "bee": 1, "cat": 1})
    out = () if "--out" in arguments else ("--out", tmp_path / "out")
    monkeypatch.setattr(
        "sys.argv", ["glocal", *command(places.get(arguments[0], arguments[0]), *arguments[1:], *out)[3:]]
    )
    with pytest.raises(SystemExit) as stopped:
        glocal.cli.main()
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert message in " ".join((printed.out + printed.err).split())
    assert "Traceback" not in printed.err
    assert not list((tmp_path / "out").glob("runs/*")) if (tmp_path / "out").exists() else True
