"""Timing: planted slow models are found out, models come back as they were."""

import random
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from glocal.bench import compare, measure_inference, measure_together, paired_ratio, speed
from glocal.bench.passes import training_step
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


class Clock:
    """A clock that stands still but for the models' work; each round of it is slower than the last."""

    def __init__(self, monkeypatch, drift: float = 1.0):
        self.now, self.pace, self.drift = 0.0, 1.0, drift
        monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def advance(self, seconds: float) -> None:
        self.now += seconds * self.pace
        self.pace *= self.drift


class Worker(nn.Module):
    """Takes a known time of the clock; tells how it was called."""

    def __init__(self, clock: Clock, seconds: float):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)
        self.clock, self.seconds, self.calls = clock, seconds, []

    def __deepcopy__(self, memo):
        copied = Worker(self.clock, self.seconds)
        copied.load_state_dict(self.state_dict())
        copied.calls = self.calls
        return copied

    def forward(self, x):
        x = self.norm(self.conv(x)).mean((2, 3))
        self.calls.append((self.training, torch.is_inference_mode_enabled(), torch.is_grad_enabled(), x.dtype))
        self.clock.advance(self.seconds)
        return x


def test_figures_by_a_clock_of_our_own(monkeypatch):
    clock = Clock(monkeypatch)
    models = {"ours": Worker(clock, 0.010), "plain": Worker(clock, 0.015), "quick": Worker(clock, 0.004)}
    ours, plain, quick = compare(models, "ours", image_size=8, batch_size=4, seconds=0.5)
    assert [row.name for row in (ours, plain, quick)] == list(models)
    assert (ours.ratio, ours.ratio_low, ours.ratio_high) == (1.0, 1.0, 1.0)
    assert plain.ratio == pytest.approx(1.5)
    assert quick.ratio == pytest.approx(0.4)
    assert plain.ms == pytest.approx(15)
    assert plain.images_per_s == pytest.approx(4 / 0.015)
    assert plain.rounds == ours.rounds == -(-1500 // 29)  # three times 0.5 s, 29 ms a round
    assert {row.reference for row in (ours, plain, quick)} == {"ours"}
    assert {row.error for row in (ours, plain, quick)} == {None}


def test_a_ratio_does_not_drift_with_the_machine(monkeypatch):
    clock = Clock(monkeypatch, drift=1.02)  # 2 % slower after every pass
    models = {"ours": Worker(clock, 0.001), "plain": Worker(clock, 0.003)}
    ours, plain = compare(models, "ours", image_size=8, seconds=2.0)
    assert plain.ms_high > 1.2 * plain.ms_low
    assert 3 / 1.03 < plain.ratio_low <= plain.ratio <= plain.ratio_high < 3 * 1.03
    assert ours.ratio == 1


def test_each_model_can_have_its_own_reference(monkeypatch):
    clock = Clock(monkeypatch)
    models = {name: Worker(clock, seconds) for name, seconds in (("a", 1.0), ("a2", 2.0), ("b", 5.0), ("b2", 15.0))}
    rows = compare(models, {"a": "a", "a2": "a", "b": "b", "b2": "b"}, image_size=8, seconds=1)
    assert [row.ratio for row in rows] == pytest.approx([1, 2, 1, 3])


def test_an_interval_is_of_the_paired_ratios():
    assert paired_ratio([2, 4, 8, 16, 32], [1, 2, 4, 8, 16]) == (2, 2, 2)
    assert paired_ratio([5, 1, 3, 2, 4], [1] * 5) == (3, 1, 5)  # of five rounds the extremes
    assert paired_ratio(range(1, 22), [1] * 21) == (11, 7, 15)  # Binomial(21, 1/2): P(X < 7) = 0.039


def test_intervals_cover_the_median_as_often_as_they_say():
    generator, covered = random.Random(0), 0
    for _ in range(2000):
        times = [generator.lognormvariate(0.3, 0.5) for _ in range(15)]
        _, low, high = paired_ratio(times, [1.0] * 15)
        covered += low <= 2.718281828**0.3 <= high
    assert 0.88 < covered / 2000 < 0.98  # 0.965 by the binomial distribution: intervals are not shorter than 90 %


class Breaks(nn.Module):
    def __init__(self, error, after=0):
        super().__init__()
        self.error, self.left = error, after

    def forward(self, x):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return x


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore")


@pytest.mark.parametrize("after", [0, 7])
def test_a_model_that_fails_says_why_and_the_others_go_on(monkeypatch, after):
    clock = Clock(monkeypatch)
    models = {"large": Breaks(OUT_OF_MEMORY, after), "ours": Worker(clock, 0.01), "plain": Worker(clock, 0.02)}
    models["large"].train()
    large, ours, plain = compare(models, "ours", image_size=8, seconds=0.1)
    assert large.error == "out of memory (CUDA out of memory. Tried to allocate 9 GiB.)"
    assert (large.ms, large.ratio, large.rounds) == (None, None, 0)
    assert plain.ratio == pytest.approx(2)
    assert ours.rounds == plain.rounds >= 5
    assert models["large"].training  # put back
    assert models["large"].left == -1  # not tried again
    failed, kept = compare({"r": Breaks(RuntimeError("planted")), "m": Worker(clock, 0.01)}, "r", image_size=8)
    assert failed.error == "planted"
    assert kept.ms == pytest.approx(10)
    assert kept.ratio is None


def test_a_batch_that_does_not_fit_at_all(monkeypatch):
    (row,) = compare({"m": Worker(Clock(monkeypatch), 0.01)}, "m", batch_size=10**12)
    assert row.error.startswith("out of memory")
    assert row.ms is None


def test_training_steps_are_of_a_copy(monkeypatch):
    model = Worker(Clock(monkeypatch), 0.01).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    with torch.inference_mode():
        (row,) = compare({"m": model}, "m", image_size=8, batch_size=2, seconds=0.1, train=True)
    assert row.ms == pytest.approx(10)
    assert set(model.calls) == {(True, False, True, torch.float32)}
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_training_step_is_forward_loss_backward_and_optimizer():
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.rand(2, 3, 2, 2)
    seen, before = [], model[1].weight.clone()
    model[1].weight.register_hook(lambda gradient: seen.append(gradient))

    def loss(logits):
        assert logits.shape == (2, 3)
        return logits.square().sum()

    training_step(model, images, loss=loss)()
    assert len(seen) == 1
    assert not torch.equal(before, model[1].weight)
    # AdamW's first step is of its learning rate, 1e-3, against the sign of the gradient, and decays by 1e-2 of that
    assert torch.allclose(model[1].weight, before * (1 - 1e-5) - 1e-3 * seen[0].sign(), atol=1e-6)


@pytest.mark.parametrize("train", [False, True])
def test_precision_is_autocast(monkeypatch, train):
    model = Worker(Clock(monkeypatch), 0.01)
    (row,) = compare({"m": model}, "m", image_size=8, batch_size=2, seconds=0.05, train=train, precision="bf16")
    assert row.error is None
    assert {dtype for *_, dtype in model.calls} == {torch.bfloat16}
    assert model.conv.weight.dtype == torch.float32


def test_functions_are_timed_as_modules_are():
    seen = []

    def run(images):
        seen.append((tuple(images.shape), images.dtype))
        return images

    (row,) = compare({"f": run}, "f", image_size=8, batch_size=2, seconds=0.01)
    assert row.ms > 0
    assert set(seen) == {((2, 3, 8, 8), torch.float32)}
    (row,) = compare({"f": run}, "f", image_size=8, batch_size=2, seconds=0.01, train=True)
    assert "expected a module to train, got function" in row.error


def test_a_yardstick_is_run_in_every_round(monkeypatch):
    clock = Clock(monkeypatch)
    runs = []

    def yardstick():
        runs.append(torch.is_inference_mode_enabled())
        clock.advance(0.002)

    models = {"a": Worker(clock, 0.010), "b": Worker(clock, 0.001)}
    for train in (False, True):
        rows = compare(models, "a", image_size=8, batch_size=2, seconds=0.1, train=train, yardstick=yardstick)
        assert [row.yardsticks for row in rows] == pytest.approx([5, 0.5])
        assert [row.name for row in rows] == ["a", "b"]
    assert len(runs) > 2 * rows[0].rounds
    assert compare(models, "a", image_size=8, seconds=0.1)[0].yardsticks is None


def test_an_observer_is_told_how_far_it_is(monkeypatch):
    told = []
    model = Worker(Clock(monkeypatch), 0.01)
    compare({"m": model}, "m", image_size=8, seconds=0.1, observer=lambda what, done: told.append((what, done)))
    assert told[0] == ("warming up m", 0)
    assert told[1][0] == "round 1"
    shares = [done for _, done in told]
    assert shares == sorted(shares)
    assert 0.9 < shares[-1] <= 1


def test_bad_comparisons():
    model = Sleeper(0.0)
    with pytest.raises(GlocalError, match="reference: expected one of ours, got 'theirs'"):
        compare({"ours": model}, "theirs")
    with pytest.raises(GlocalError, match="precision: expected one of 32, bf16, fp16"):
        compare({"ours": model}, "ours", precision="16")
    with pytest.raises(GlocalError, match="at least one model"):
        compare({"ours": model}, "ours", batch_size=0)


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
