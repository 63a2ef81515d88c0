"""Limits on costs: what is asked, who meets it, and what measures it."""

import importlib.util
import math

import pytest

from glocal.comparison.limits import CostLimits, at_limit, meets, nearest_model, none_meets
from glocal.comparison.units import COUNTS, SIZES, TIMES, parse_quantity
from glocal.errors import GlocalError

IN_ORT = CostLimits(latency_ms=10, runtime="onnxruntime")


def times(median, low=None, high=None, key="latency_ms_b1_onnxruntime"):
    """Measured times of a model."""
    return {key: median, f"{key}_range": [low or median, high or median]}


@pytest.mark.parametrize(
    ("text", "units", "value"),
    [
        ("10ms", TIMES, 10), ("0.5s", TIMES, 500), ("1e-2 s", TIMES, 10), (" 7 MS ", TIMES, 7), (".5ms", TIMES, 0.5),
        ("20M", COUNTS, 20e6), ("1.5b", COUNTS, 1.5e9), ("300k", COUNTS, 300e3),
        ("40MB", SIZES, 40e6), ("40MiB", SIZES, 40 * 2**20), ("1gib", SIZES, 2**30), ("5kB", SIZES, 5e3),
        ("2GB", SIZES, 2e9), ("8KiB", SIZES, 8192),
    ],
)  # fmt: skip
def test_quantities(text, units, value):
    assert parse_quantity("max", text, units) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "ms", "10", "0", "0ms", "-3ms", "nan", "nanms", "inf", "infms", "-infs", "1e999ms", "1e308s", "10us",
        "10m", "10msms", "10ms s", "1,5ms", "1_000ms", "1.2.3ms", "--5ms", "0x10s", "٣ms", "10ms\0",
    ],
)  # fmt: skip
def test_no_quantity(text):
    with pytest.raises(GlocalError, match=r"^max-latency: expected a positive number and its unit \(ms, s\), such as"):
        parse_quantity("max-latency", text, TIMES)


def test_messages_say_what_to_write():
    with pytest.raises(GlocalError, match="got '20' without a unit: write 20K or 20M"):
        parse_quantity("max-params", "20", COUNTS)
    with pytest.raises(GlocalError, match=r"\(kB, MB, GB, KiB, MiB, GiB\), such as 40MB; got '40M': M is not one of"):
        parse_quantity("max-file", "40M", SIZES)


def test_options_become_limits():
    limits = CostLimits.parse(max_latency="10ms", max_params="20M", max_file="40MB", max_memory="500MiB")
    assert limits == CostLimits(latency_ms=10, params=20e6, file_bytes=40e6, memory_mib=500)
    assert CostLimits.parse(max_memory="500MB").memory_mib == pytest.approx(476.837158203125)
    assert limits
    assert not CostLimits.parse()
    assert CostLimits.parse().latency_key == "latency_ms_b1"


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, "10"])
@pytest.mark.parametrize("field", ["latency_ms", "params", "file_bytes", "memory_mib"])
def test_limits_are_positive_numbers(field, value):
    with pytest.raises(GlocalError, match=r"^max-.*: expected a positive number, or None for no limit; got"):
        CostLimits(**{field: value})


def test_unknown_runtimes_and_batches():
    with pytest.raises(GlocalError, match="runtime: expected one of eager, onnxruntime, openvino, got 'onxruntime'"):
        CostLimits.parse(runtime="onxruntime")
    with pytest.raises(GlocalError, match="batch: expected 1 or more, got 0"):
        CostLimits(batch_size=0)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("missing", ["onnxscript", "itself"])
def test_a_runtime_that_is_not_installed(monkeypatch, runtime, missing):
    package = runtime if missing == "itself" else missing
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))
    message = f"runtime: {runtime} needs {package}, which is not installed; pip install 'glocal\\[export\\]'"
    with pytest.raises(GlocalError, match=message):
        CostLimits.parse(runtime=runtime)
    assert CostLimits.parse(runtime="eager").runtime == "eager"


def test_a_time_is_judged_by_its_median():
    assert meets(IN_ORT, times(9.9)) == []
    assert meets(IN_ORT, times(10)) == []
    assert meets(IN_ORT, times(12.3)) == ["12.3 ms per image in onnxruntime, above 10 ms"]
    assert meets(IN_ORT, times(10.001)) == ["10.001 ms per image in onnxruntime, above 10 ms"]
    eager = CostLimits(latency_ms=0.5)
    assert meets(eager, times(1234.5, key="latency_ms_b1")) == ["1,234 ms per image in PyTorch, above 0.5 ms"]
    eight = CostLimits(latency_ms=5, batch_size=8)
    assert meets(eight, times(7.25, key="latency_ms_b8")) == ["7.25 ms per 8 images in PyTorch, above 5 ms"]


def test_quartiles_on_both_sides_of_a_limit_are_said():
    below, above = times(9.9, 9.7, 10.2), times(10.1, 9.7, 10.2)
    assert meets(IN_ORT, below) == []
    assert meets(IN_ORT, above) == [
        "10.1 ms per image in onnxruntime, above 10 ms but at the limit: half of the passes took 9.70 to 10.2 ms"
    ]
    assert at_limit(IN_ORT, below)
    assert at_limit(IN_ORT, above)
    assert not at_limit(IN_ORT, times(9, 8, 9.9))
    assert not at_limit(IN_ORT, times(12, 11, 13))
    assert not at_limit(CostLimits(params=1e6), below)
    assert not at_limit(IN_ORT, {"latency_ms_b1_onnxruntime": 9.0})  # of older results, without quartiles


def test_every_limit_has_its_reason():
    limits = CostLimits.parse(max_latency="10ms", max_params="20M", max_file="40MB", max_memory="500MB")
    small = {**times(1, key="latency_ms_b1"), "params": 20e6, "file_bytes": 40e6, "peak_memory_mib": 476.8}
    assert meets(limits, small) == []
    large = {**times(20, key="latency_ms_b1"), "params": 25.6e6, "file_bytes": 102.4e6, "peak_memory_mib": 1000}
    assert meets(limits, large) == [
        "20.0 ms per image in PyTorch, above 10 ms",
        "25.6M parameters, above 20M",
        "102 MB on the disk, above 40 MB",
        "1,049 MB of memory in training, above 500 MB",
    ]
    binary = CostLimits.parse(max_file="40MiB", max_memory="1GiB")
    assert meets(binary, {"file_bytes": 50 * 2**20, "peak_memory_mib": 2048}) == [
        "50.0 MiB on the disk, above 40 MiB",
        "2,048 MiB of memory in training, above 1,024 MiB",
    ]
    assert meets(CostLimits(), {}) == []


def test_a_model_that_does_not_run_in_the_runtime():
    broken = {"params": 1e6, "runtime_error": "swin cannot be exported as onnx: planted"}
    assert meets(IN_ORT, broken) == ["does not run in onnxruntime: swin cannot be exported as onnx: planted"]
    assert not at_limit(IN_ORT, broken)
    assert meets(CostLimits(params=2e6, runtime="onnxruntime"), broken) == []
    assert len(meets(CostLimits(params=5e5, latency_ms=1, runtime="onnxruntime"), broken)) == 2


def test_a_cost_that_was_not_measured_is_no_cost_within_the_limit():
    with pytest.raises(KeyError):
        meets(IN_ORT, {"latency_ms_b1": 1.0})


def test_the_nearest_model_is_the_least_above_its_worst_limit():
    limits = CostLimits(latency_ms=10, params=20e6, runtime="onnxruntime")
    costs = {
        "resnet50": times(24) | {"params": 25.6e6},
        "resnet18": times(12.3) | {"params": 11.7e6},
        "quick": times(5) | {"params": 40e6},
        "broken": {"params": 1e6, "runtime_error": "planted"},
    }
    assert nearest_model(limits, costs) == "nearest: resnet18, 12.3 ms per image in onnxruntime, 1.23 times the limit"
    assert none_meets(limits, costs) == (
        "limits: expected a model of at most 10 ms per image in onnxruntime and 20M parameters, got none among 4; "
        "nearest: resnet18, 12.3 ms per image in onnxruntime, 1.23 times the limit; "
        "allow more, or name smaller models with --models"
    )
    barely = {"a": times(10.0004) | {"params": 1e6}}
    assert nearest_model(limits, barely) == "nearest: a, 10.0004 ms per image in onnxruntime, 1.00004 times the limit"
    assert nearest_model(limits, {"broken": costs["broken"]}) == "none of them runs in onnxruntime (broken: planted)"
