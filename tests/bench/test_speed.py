"""Timing: planted slow models are found out, models come back as they were."""

import time

import pytest
import torch
from torch import nn

from glocal.bench import measure_inference, measure_together
from glocal.errors import GlocalError


class Sleeper(nn.Module):
    """Takes a known time; tells in which mode and memory format it was called."""

    def __init__(self, seconds: float, calls: list | None = None):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)
        self.seconds = seconds
        self.calls = [] if calls is None else calls

    def forward(self, x):
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        self.calls.append(
            (self.seconds, self.training, torch.is_inference_mode_enabled(), tuple(x.shape), channels_last)
        )
        time.sleep(self.seconds)
        return x


def test_a_planted_slow_model_ranks_last_with_its_time():
    models = {"slow": Sleeper(0.020), "fast": Sleeper(0.0), "middle": Sleeper(0.005)}
    timings = measure_together(models, 8, 4, seconds=0.2)
    assert list(timings) == ["slow", "fast", "middle"]
    assert sorted(timings, key=lambda name: timings[name].median_ms) == ["fast", "middle", "slow"]
    assert timings["slow"].median_ms >= 20
    assert timings["middle"].median_ms >= 5
    for timing in timings.values():
        assert timing.low_ms <= timing.median_ms <= timing.high_ms
        assert timing.images_per_s == pytest.approx(4000 / timing.median_ms)
        assert timing.rounds >= 5


def test_rounds_are_interleaved_and_in_another_order_each_time():
    calls = []
    timing = measure_together({"a": Sleeper(0.001, calls), "b": Sleeper(0.002, calls)}, 8, seconds=0.1)
    assert timing["a"].rounds == timing["b"].rounds
    timed = [seconds for seconds, *_ in calls[-2 * timing["a"].rounds :]]
    rounds = {tuple(timed[i : i + 2]) for i in range(0, len(timed), 2)}
    assert rounds == {(0.001, 0.002), (0.002, 0.001)}


def test_models_run_in_eval_and_inference_mode_and_come_back():
    model = nn.Sequential(Sleeper(0.0), nn.BatchNorm2d(3)).train()
    model[1].eval()
    statistics = model[1].running_mean.clone()
    timing = measure_inference(model, (8, 12), 2, seconds=0.05)
    assert set(model[0].calls) == {(0.0, False, True, (2, 3, 8, 12), False)}
    assert len(model[0].calls) > timing.rounds  # warmed up before
    assert model.training
    assert model[0].training
    assert not model[1].training
    assert torch.equal(model[1].running_mean, statistics)


def test_modes_come_back_after_an_error():
    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError("planted")

    healthy, broken = Sleeper(0.0).train(), Fails().train()
    with pytest.raises(RuntimeError, match="planted"):
        measure_together({"healthy": healthy, "broken": broken}, 8, seconds=0.05)
    assert healthy.training
    assert broken.training


def test_images_take_the_memory_format_of_the_model():
    model = Sleeper(0.0).to(memory_format=torch.channels_last)
    measure_inference(model, 8, 2, seconds=0.02)
    assert all(channels_last for *_, channels_last in model.calls)
    assert model.conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_slow_models_still_get_enough_rounds():
    assert measure_inference(Sleeper(0.03), 8, seconds=0.001).rounds == 5


def test_bad_calls():
    with pytest.raises(GlocalError, match="at least one model"):
        measure_together({})
    with pytest.raises(GlocalError, match="at least one model"):
        measure_inference(Sleeper(0.0), batch_size=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_work_is_waited_for():
    class Matmuls(nn.Module):
        def __init__(self, count: int):
            super().__init__()
            self.count = count
            self.weight = nn.Parameter(torch.randn(4096, 4096))

        def forward(self, x):
            y = self.weight
            for _ in range(self.count):
                y = y @ self.weight
            return y

    one, ten = Matmuls(1), Matmuls(10)
    timings = measure_together({"one": one, "ten": ten}, 8, device="cuda", seconds=0.3)
    assert 6 < timings["ten"].median_ms / timings["one"].median_ms < 14
    assert one.weight.device.type == "cpu"
