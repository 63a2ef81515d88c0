"""Costs in each runtime, of models before and after training."""

import time

import pytest

from glocal.bench import count_params
from glocal.comparison import deployment
from glocal.comparison.deployment import check_again, measure
from glocal.comparison.limits import CostLimits, meets
from glocal.errors import CheckpointError, GlocalError
from glocal.models.creation import create, model_args
from glocal.models.io import ModelConfig, save_model

SIZE = 32
NAMES = ("resnet_micro", "vit_micro")
SECONDS = 0.05


def create_all():
    return {name: create(name, num_classes=3, image_size=SIZE, seed=0) for name in NAMES}


def slowed(model, seconds):
    """The model, and it takes at least this long."""
    model.register_forward_pre_hook(lambda *_: time.sleep(seconds))
    return model


def save(name, model, folder):
    """As a run does."""
    config = ModelConfig.of_classifier(
        model, classes=["0", "1", "2"], image_size=SIZE, keywords=model_args(name, SIZE)
    )  # fmt: skip
    save_model(model, folder, config)


@pytest.mark.parametrize("runtime", ["eager", "onnxruntime", "openvino"])
def test_costs_before_training_are_those_of_the_saved_model(tmp_path, runtime):
    if runtime != "eager":
        pytest.importorskip("onnxscript")
        pytest.importorskip(runtime)
    models = create_all()
    costs = measure(models, SIZE, "cpu", CostLimits(runtime=runtime), seconds=SECONDS)
    assert list(costs) == [*NAMES]
    key = CostLimits(runtime=runtime).latency_key
    for name, model in models.items():
        of_model = costs[name]
        low, high = of_model[f"{key}_range"]
        assert 0 < low <= of_model[key] <= high
        assert of_model["params"] == count_params(model)
        # all weights are in the file; batch norm may be folded into convolutions
        assert 3.5 * of_model["params"] < of_model["file_bytes"] < 4.5 * of_model["params"] + 400_000
        assert of_model["inference_memory_mib"] > 4 * of_model["params"] / 2**20
        generous = CostLimits(latency_ms=10_000, file_bytes=of_model["file_bytes"], runtime=runtime)
        assert meets(generous, of_model) == []
    name = NAMES[0]
    save(name, models[name], tmp_path)
    again = check_again(tmp_path, CostLimits(latency_ms=10_000, memory_mib=1, runtime=runtime), seconds=SECONDS)
    assert again.reasons == []
    assert again.costs["params"] == costs[name]["params"]
    if runtime == "eager":
        assert again.costs["file_bytes"] == costs[name]["file_bytes"] == (tmp_path / "model.safetensors").stat().st_size
    else:
        assert again.costs["file_bytes"] == pytest.approx(costs[name]["file_bytes"], abs=2_000)
    reasons = meets(CostLimits(latency_ms=1e-4, params=1e5, runtime=runtime), again.costs)
    assert [reason.split(", ")[1] for reason in reasons] == ["above 0.0001 ms", "above 0.1M"]


def test_a_planted_slow_model_is_above_the_limit():
    models = create_all()
    slowed(models["vit_micro"], 0.05)
    models["vit_micro"].train()
    limits = CostLimits(latency_ms=50)
    costs = measure(models, SIZE, "cpu", limits, seconds=SECONDS)
    assert meets(limits, costs["resnet_micro"]) == []
    (reason,) = meets(limits, costs["vit_micro"])
    assert reason.endswith("ms per image in PyTorch, above 50 ms")
    assert models["vit_micro"].training


def test_the_task_may_save_in_its_own_way():
    model = create_all()["vit_micro"]
    written = []

    def write(name, given, folder):
        written.append((name, given))
        (folder / "model.safetensors").write_bytes(bytes(123))

    costs = measure({"a name": model}, SIZE, "cpu", CostLimits(), save=write, seconds=SECONDS)
    assert costs["a name"]["file_bytes"] == 123
    assert written == [("a name", model)]


def test_a_model_that_cannot_be_exported_does_not_stop_the_others():
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    models = create_all()
    forward = models["vit_micro"].forward
    models["vit_micro"].forward = lambda x: forward(x) if x.sum().item() > -1e9 else x  # asks for a value
    limits = CostLimits(latency_ms=10_000, runtime="onnxruntime")
    costs = measure(models, SIZE, "cpu", limits, seconds=SECONDS)
    assert meets(limits, costs["resnet_micro"]) == []
    assert limits.latency_key not in costs["vit_micro"]
    (reason,) = meets(limits, costs["vit_micro"])
    assert reason.startswith("does not run in onnxruntime: ")


def test_a_trained_model_that_became_slow_is_found(tmp_path, monkeypatch):
    save("vit_micro", create_all()["vit_micro"], tmp_path)
    loaded = deployment.load_model(tmp_path)
    slowed(loaded.model, 0.02)
    monkeypatch.setattr(deployment, "load_model", lambda path: loaded)
    again = check_again(tmp_path, CostLimits(latency_ms=20), seconds=SECONDS)
    assert len(again.reasons) == 1
    assert again.costs["latency_ms_b1"] > 20


def test_there_must_be_a_model(tmp_path):
    with pytest.raises(CheckpointError, match="expected a folder with"):
        check_again(tmp_path, CostLimits())


def test_a_runtime_that_is_not_installed_stops_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(GlocalError, match="pip install 'glocal"):
        measure({}, SIZE, "cpu", CostLimits(runtime="openvino"))
