"""`glocal bench` as a person calls it."""

import csv
import importlib.util
import json
from functools import partial
from xml.etree import ElementTree

import pytest
import torch

import glocal
from glocal.bench import suite
from glocal.schema import BenchResults
from tests.fields import faults

QUICK = ("--size", "32", "--seconds", "0.02")


@pytest.fixture
def call(command):
    return partial(command, "bench")


def words(text):
    return " ".join(text.split())


def test_the_table_and_the_files_say_the_same(call, tmp_path):
    out = tmp_path / "new" / "bench"
    code, table, err = call("resnet_micro", "vit_micro", "--batch", "1,2", "--train", "--memory", "--out", out, *QUICK)
    assert code == 0
    assert {path.name for path in out.iterdir()} == {"results.json", "results.csv", "bench.svg"}
    results = json.loads((out / "results.json").read_text())
    assert faults(results, BenchResults) == []
    assert results["environment"]["glocal"] == glocal.__version__
    assert [(row["model"], row["mode"], row["batch_size"]) for row in results["rows"]] == [
        (model, mode, batch)
        for batch in (1, 2)
        for mode in ("inference", "training")
        for model in ("resnet_micro", "vit_micro")
    ]
    lines = table.splitlines()
    for row in results["rows"]:
        assert row["error"] is None
        assert row["ms_low"] <= row["ms"] <= row["ms_high"]
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert row["memory_mib"] > 0
        assert row["share_of_limit"] > 0
        assert any(line.split()[0:1] == [row["model"]] and f"{row['ms']:.2f}" in line.split() for line in lines)
    assert "training, batch 2, 32 px, float32" in table
    assert "time / resnet_micro (90 %)" in table
    assert "GFLOP/s" in table
    assert "measured: inference, batch 1, 32 px, float32" in err
    with open(out / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["ms"]) for row in rows] == [row["ms"] for row in results["rows"]]
    svg = (out / "bench.svg").read_text()
    ElementTree.fromstring(svg)
    assert "vit_micro, glocal, eager" in svg
    assert "#010203" not in svg  # the figures' marker of ink
    assert "\x1b" not in table + err


def test_peers_are_named_and_missing_ones_said(call, monkeypatch, tmp_path):
    find_spec = importlib.util.find_spec
    hidden = ("transformers", "vit_pytorch")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in hidden else find_spec(name, *a))
    code, table, _ = call("glocal_vit_tiny_patch16_224", "resnet_micro", "--peers", "--out", tmp_path, *QUICK)
    assert code == 0
    assert "Note: glocal_vit_tiny_patch16_224: transformers is not installed" in table
    assert "Note: resnet_micro: no known peer" in table
    ours, timm, other = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert timm["source"].startswith("timm ")
    assert timm["same_function"]
    assert timm["best_peer"]
    assert timm["difference"] < 1e-4
    assert (ours["same_function"], other["same_function"]) == (None, None)
    assert "best peer; same function" in table
    assert "the best peer, timm" in table


def test_other_runtimes_run_what_was_exported(call, tmp_path):
    pytest.importorskip("onnxruntime")
    code, table, _ = call("resnet_micro", "--runtime", "eager,onnxruntime", "--batch", "3", "--out", tmp_path, *QUICK)
    assert code == 0, table
    eager, exported = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert exported["error"] is None
    assert exported["difference"] < 1e-4
    assert exported["reference"] == eager["name"]


@pytest.mark.slow
def test_compiled_models(call, tmp_path):
    code, _, _ = call("vit_micro", "--runtime", "eager,compile", "--out", tmp_path, "--train", *QUICK)
    assert code == 0
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["error"] for row in rows] == [None] * 4


def test_timm_models_at_half_precision(call):
    code, table, _ = call("resnet10t", "--precision", "bf16", "--threads", "1", *QUICK)
    assert code == 0
    assert "inference, batch 1, 32 px, bfloat16 autocast" in table
    assert any(line.split()[:3] == ["resnet10t", "timm", "eager"] for line in table.splitlines())


def test_what_does_not_fit_has_its_row_and_the_others_go_on(call, tmp_path):
    code, table, _ = call("resnet_micro", "--batch", f"{10**12},1", "--out", tmp_path, *QUICK)
    assert code == 0
    assert "out of memory" in table
    assert "out of memory" in (tmp_path / "bench.svg").read_text()
    code, table, _ = call("resnet_micro", "--batch", 10**12, *QUICK)
    assert code == 1


def test_ctrl_c_keeps_what_was_finished(call, monkeypatch, tmp_path):
    measure, done = suite.measure, []

    def stop_at_the_second(*arguments):
        if done:
            raise KeyboardInterrupt
        done.append(True)
        return measure(*arguments)

    monkeypatch.setattr(suite, "measure", stop_at_the_second)
    code, _, err = call("resnet_micro", "--batch", "1,2", "--out", tmp_path, *QUICK)
    assert code == 130
    assert "has the finished results" in words(err)
    assert len(json.loads((tmp_path / "results.json").read_text())["rows"]) == 1


def test_threads_come_back(call):
    before = torch.get_num_threads()
    assert call("vit_micro", "--threads", before + 1, *QUICK)[0] == 0
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("botnet5O",), "unknown model 'botnet5O'; nearest: botnet50"),
        ((",",), "models: expected at least one name"),
        (("vit_micro", "--batch", "0"), "batch: expected 1 or more, got 0"),
        (("vit_micro", "--batch", "1,x"), "batch: expected whole numbers such as 1,8,32; got '1,x'"),
        (("vit_micro", "--size", "16"), "size: expected 32 or more, got 16"),
        (("vit_micro", "--precision", "fp8"), "precision: expected one of 32, bf16, fp16, got 'fp8'"),
        (("vit_micro", "--runtime", "onnxrutime"), "got 'onnxrutime'; nearest: onnxruntime"),
        (("vit_micro", "--runtime", "openvino"), "openvino is not installed; pip install openvino"),
        (("vit_micro", "--threads", "0"), "threads: expected 1 or more, got 0"),
        (("vit_micro", "--seconds", "0"), "seconds: expected a positive number, got 0"),
        (("vit_micro", "--reference", "botnet50"), "reference: expected one of vit_micro, got 'botnet50'"),
        (("vit_micro", "--device", "tpu"), "device: expected auto or one of"),
        (("vit_micro", "--out", "file/bench"), "out: cannot write to file/bench"),
    ],
)
def test_bad_calls_say_so_and_exit_with_2(call, monkeypatch, tmp_path, arguments, message):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "openvino" else find_spec(name, *a)
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    code, out, err = call(*arguments, *(QUICK if "--size" not in arguments and "--seconds" not in arguments else ()))
    assert code == 2
    assert message in words(err)
    assert err.startswith("Error: ")
    assert out == ""


def test_help_has_examples(call):
    code, out, _ = call("--help")
    assert code == 0
    assert "glocal bench botnet50 resnet50 --batch 1,8" in out
