"""What `glocal bench` measures, with models whose times are known."""

import importlib.util
import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from glocal.bench import limits, peers, speed, suite
from glocal.bench.limits import Limits, Product, matrix_products, measure_limits
from glocal.bench.peers import Peer
from glocal.bench.suite import BenchSettings, run_suite
from glocal.errors import GlocalError
from glocal.schema import BenchResults
from tests.fields import faults

SECONDS = {"small": 0.010, "large": 0.030, "peer": 0.012, "other": 0.002, "slow peer": 0.020, "exported": 0.005}


class Timed(nn.Module):
    """A 1x1 convolution of 9 weights that takes the time of its name."""

    clock = 0.0

    def __init__(self, name: str, gain: float = 1.0):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        self.name, self.gain = name, gain

    def forward(self, x):
        Timed.clock += SECONDS[self.name]
        return self.gain * self.conv(x).mean((2, 3))


def _product():
    Timed.clock += 0.010


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """Time is what the models take; the machine's limit is 1 GFLOP/s; one model has peers."""
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: Timed.clock))
    monkeypatch.setattr(suite, "time", SimpleNamespace(perf_counter=lambda: Timed.clock))
    monkeypatch.setattr(suite, "fastest_product", lambda device, **_: Product("a product", 5_000_000, _product))
    monkeypatch.setattr(suite, "memory_bandwidth", lambda device: 5.0)
    monkeypatch.setattr(
        peers,
        "PEERS",
        (
            Peer("torchvision", "torchvision", "small", lambda *_: Timed("peer")),
            Peer("timm", "timm", "small", lambda *_: Timed("other", gain=1.001), differs="a gain"),
            Peer("numpy", "numpy", "small", lambda *_: Timed("slow peer")),
            Peer("nowhere", "no_such_package", "small", lambda *_: Timed("peer")),
        ),
    )


def create(name, image_size):
    if name == "broken":
        raise GlocalError("broken cannot be made")
    return Timed(name)


def load(model, runtime, image_size, batch_size):
    assert (image_size, batch_size) == (32, 1)

    def run(images):
        Timed.clock += SECONDS["exported"]
        with torch.no_grad():
            return model.conv(images).mean((2, 3))

    return run


def run(*models, **kwargs):
    settings = BenchSettings(models=models, **{"image_sizes": (32,), "seconds": 0.1, **kwargs})
    results = run_suite(settings, create=create, load=load)
    assert faults(results, BenchResults) == []
    return results


def cells(results, *keys):
    return [tuple(row[key] for key in keys) for row in results["rows"]]


def test_models_are_compared_with_the_first_of_them():
    results = run("small", "large", batch_sizes=(1, 4))
    assert cells(results, "model", "batch_size", "ratio") == [
        ("small", 1, 1.0),
        ("large", 1, pytest.approx(3)),
        ("small", 4, 1.0),
        ("large", 4, pytest.approx(3)),
    ]
    small, large, *_ = results["rows"]
    assert large["ms"] == pytest.approx(30)
    assert large["reference"] == small["name"]
    assert small["macs"] == 32 * 32 * 9
    assert small["params"] == 9
    assert small["share_of_limit"] == pytest.approx(2 * 9216 / 0.010 / 1e9)
    assert results["rows"][2]["share_of_limit"] == pytest.approx(4 * small["share_of_limit"])
    assert results["limits"] == {"gflops": pytest.approx(1.0), "product": "a product", "gb_per_s": 5.0}
    json.dumps(results, allow_nan=False)


def test_another_reference_may_be_asked_for():
    results = run("small", "large", reference="large", peers=True)
    assert {row["reference"] for row in results["rows"]} == {"large, tests, eager"}
    assert results["rows"][0]["ratio"] == pytest.approx(1 / 3)


def test_peers_stand_beside_ours_and_another_function_is_never_the_best():
    results = run("small", "large", peers=True)
    assert cells(results, "model", "ratio", "same_function", "best_peer") == [
        ("small", 1.0, None, False),
        ("small", pytest.approx(1.2), True, True),
        ("small", pytest.approx(0.2), False, False),
        ("small", pytest.approx(2.0), True, False),
        ("large", 1.0, None, False),
    ]
    sources = [row["source"].partition(" ")[0] for row in results["rows"]]
    assert sources == ["tests", "torchvision", "timm", "numpy", "tests"]
    other = results["rows"][2]
    assert other["difference"] == pytest.approx(1e-3, rel=0.01)
    assert other["note"] == "a gain"
    assert results["rows"][1]["difference"] < 1e-6
    assert results["notes"] == [
        "small: nowhere is not installed; pip install nowhere",
        "large: no known peer",
    ]


def test_runtimes_are_compared_with_the_first_of_the_model(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    results = run("small", "large", runtimes=("eager", "openvino"), train=True)
    assert cells(results, "model", "runtime", "mode", "ratio") == [
        ("small", "eager", "inference", 1.0),
        ("small", "openvino", "inference", pytest.approx(0.5)),
        ("large", "eager", "inference", 1.0),
        ("large", "openvino", "inference", pytest.approx(1 / 6)),
        ("small", "eager", "training", 1.0),
        ("large", "eager", "training", pytest.approx(3)),
    ]
    assert results["rows"][1]["difference"] < 1e-6
    assert results["rows"][0]["difference"] is None
    assert results["notes"] == ["training runs only in torch: other runtimes have no training rows"]
    inference, training = results["rows"][2], results["rows"][5]
    assert training["share_of_limit"] == pytest.approx(3 * inference["share_of_limit"])


def test_what_fails_has_its_reason_and_the_others_go_on(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())

    def no_load(model, runtime, image_size, batch_size):
        raise RuntimeError("cannot be exported")

    settings = BenchSettings(models=("broken", "small"), image_sizes=(32,), seconds=0.1, runtimes=("openvino", "eager"))
    results = run_suite(settings, create=create, load=no_load)
    assert cells(results, "model", "runtime", "error", "ratio") == [
        ("broken", "eager", "broken cannot be made", None),
        ("small", "openvino", "cannot be exported", None),
        ("small", "eager", None, 1.0),
    ]
    results = run("broken")
    assert results["rows"][0]["ms"] is None


def test_out_of_memory_is_of_one_configuration():
    results = run("small", batch_sizes=(10**12, 2))
    assert results["rows"][0]["error"].startswith("out of memory")
    assert results["rows"][1]["ms"] == pytest.approx(10)


def test_memory_on_request():
    without, with_memory = run("small"), run("small", batch_sizes=(1000,), train=True, memory=True)
    assert without["rows"][0]["memory_mib"] is None
    inference, training = (row["memory_mib"] * 2**20 for row in with_memory["rows"])
    images = 4 * 1000 * 3 * 32 * 32
    assert inference == pytest.approx(2 * images, rel=0.01)  # batch and map
    assert training > inference


def test_results_are_published_after_each_configuration():
    published = []
    settings = BenchSettings(models=("small",), image_sizes=(32, 64), batch_sizes=(1, 2), seconds=0.1)
    told = []
    run_suite(
        settings,
        create=create,
        load=load,
        publish=lambda results: published.append(len(results["rows"])),
        observer=lambda what, done: told.append(done),
    )
    assert published == [1, 2, 3, 4]
    assert told == sorted(told)
    assert 0.9 < told[-1] <= 1


def test_threads_are_set_and_put_back():
    before, seen = torch.get_num_threads(), []

    def create(name, image_size):
        seen.append(torch.get_num_threads())
        return Timed(name)

    settings = BenchSettings(models=("small",), image_sizes=(32,), seconds=0.1, threads=before + 1)
    results = run_suite(settings, create=create, load=load)
    assert seen == [before + 1]
    assert results["environment"]["threads"] == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"models": ()}, "models: expected at least one name"),
        ({"batch_sizes": (8, 0)}, "batch: expected 1 or more, got 0"),
        ({"image_sizes": (31,)}, "size: expected 32 or more, got 31"),
        ({"threads": 0}, "threads: expected 1 or more, got 0"),
        ({"seconds": 0}, "seconds: expected a positive number, got 0"),
        ({"seconds": float("nan")}, "seconds: expected a positive number, got nan"),
        ({"precision": "16"}, "precision: expected one of 32, bf16, fp16, got '16'"),
        ({"runtimes": ("onnx",)}, "runtime: expected one of eager, compile, onnxruntime, openvino, got 'onnx'"),
        ({"runtimes": ("onnxruntime",), "precision": "bf16"}, "onnxruntime runs 32 or fp16"),
        ({"runtimes": ("onnxruntime",), "device": "cuda"}, "onnxruntime runs on the CPU"),
        ({"reference": "b"}, "reference: expected one of a, got 'b'"),
    ],
)
def test_bad_settings(monkeypatch, kwargs, message):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(GlocalError, match=message):
        BenchSettings(**{"models": ("a",), **kwargs})


def test_a_missing_runtime_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else object())
    with pytest.raises(GlocalError, match="openvino is not installed; pip install openvino"):
        BenchSettings(models=("a",), runtimes=("eager", "openvino"))


def test_a_share_does_not_drift_with_the_machine(monkeypatch):
    """A neighbour makes everything slower: the share stays, the limit is the best that was seen."""
    calm = run("small")["rows"][0]
    slower = iter(1.05**i for i in range(10**6))
    original = Timed.forward

    def forward(self, x):
        result, before = original(self, x), Timed.clock
        Timed.clock = before + SECONDS[self.name] * (forward.pace - 1)
        forward.pace = next(slower)
        return result

    def product():
        Timed.clock += 0.010 * forward.pace

    forward.pace = 1.0
    monkeypatch.setattr(Timed, "forward", forward)
    monkeypatch.setattr(suite, "fastest_product", lambda device, **_: Product("a product", 5_000_000, product))
    results = run("small", seconds=2.0)
    assert results["rows"][0]["ms"] > 1.2 * calm["ms"]
    assert results["rows"][0]["share_of_limit"] == pytest.approx(calm["share_of_limit"], rel=0.06)


def test_the_machines_limits_by_a_clock_of_our_own(monkeypatch):
    ticks = iter(range(10**6))
    monkeypatch.setattr(limits, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    measured = measure_limits(seconds=4.0)  # every product takes a second, so the largest has the best rate
    assert measured == Limits(2 * 1024**3 / 1e9, "1024 x 1024 x 1024", 2 * 2**28 / 1e9)


def test_limits_of_this_machine():
    measured = measure_limits(seconds=0.04, precision="bf16")
    assert measured.gflops > 0
    assert measured.gb_per_s > 0
    for product in matrix_products():
        assert isinstance(product.run(), torch.Tensor)
    assert Product("", 10**9, _product).gflops(0.5) == 4.0
