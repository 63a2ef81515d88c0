"""What the engine costs: seconds of a step under `glocal.training.trainer.Trainer` against a loop written out, in turn.

    python benchmarks/reliability/overhead.py [--rounds 9]

Both train the same model on the same images, shuffled, flipped and normalised alike, by fused AdamW with clipping and a
cosine. The engine also logs, looks for values that are not finite and for signals, seeds every step and keeps a curve.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line has it: threads sleep while they wait

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.reliability.record import record

import glocal  # noqa: F401  (registers the models)
from glocal.data import ImageSet, load_data
from glocal.models.creation import normalisation
from glocal.models.io import ModelConfig
from glocal.signals import StopRequest
from glocal.tasks import ClassificationTask
from glocal.training import (
    Budget,
    ImageBatches,
    TrainingBatches,
    load_pixels,
    load_recipe,
)
from glocal.training.trainer import Trainer

ASKED = 0.05
CASES = {"resnet_micro": (32, 32, 20, 4), "vit_micro": (32, 32, 20, 4), "glocal_vit_small_patch16_224": (224, 8, 6, 2)}
"""Model -> side in pixels, images of a step, steps of a round, and how many times the rounds: short ones vary more."""


class Clock:
    """Seconds of a step, by the clock and of processors, from the end of the first step to that of the last."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def mark(self, _: object = None) -> None:
        """At the end of a step."""
        self.marks.append((time.perf_counter(), time.process_time()))

    def per_step(self, steps: int) -> np.ndarray:
        """(2,) seconds; the first step, which warms up, is left out."""
        return (np.array(self.marks[steps]) - np.array(self.marks[0])) / steps


def engine(model: nn.Module, images: ImageBatches, val: ImageBatches, batch_size: int, steps: int) -> np.ndarray:
    """A run as `glocal train` has it; one step more, as the last one ends with a test."""
    config, clock = load_recipe("micro", settings=[f"batch_size={batch_size}"]), Clock()
    rows: list[object] = []
    of = ModelConfig.of_classifier(model, classes=[str(i) for i in range(10)], image_size=images.size)
    trainer = Trainer(
        ClassificationTask(of, config, labels=images.labels),
        config,
        Budget((steps + 2) * batch_size / len(images), "ep"),
        macs=1,
        log=rows.append,
        stop=StopRequest(),
        curve_points=1,
        progress=clock.mark,
    )
    trainer.fit(model, TrainingBatches(images, config, 0), val)
    return clock.per_step(steps)


def bare(model: nn.Module, images: ImageBatches, batch_size: int, steps: int) -> np.ndarray:
    """A loop that does the same and nothing else."""
    clock = Clock()
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    mean, std = (255 * torch.tensor(x).view(-1, 1, 1) for x in normalisation(model))
    order = np.random.default_rng(0).permutation(len(images))
    for step in range(steps + 1):
        chosen = order[step * batch_size : (step + 1) * batch_size]
        pixels = images.pixels[chosen]
        mirrored = np.random.default_rng(step).random(len(pixels)) < 0.5
        pixels = np.where(mirrored[:, None, None, None], pixels[:, :, ::-1], pixels)
        inputs = (torch.from_numpy(pixels).permute(0, 3, 1, 2) - mean) / std
        loss = F.cross_entropy(model(inputs), torch.from_numpy(images.labels[chosen]), label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        loss.item()
        clock.mark()
    return clock.per_step(steps)


def measure(name: str, rounds: int) -> dict[str, list[float]]:
    """Quartiles over rounds of the ratio of the two, measured one after the other, in either order."""
    size, batch_size, steps, times_rounds = CASES[name]
    data = load_data("fashion-mini")
    images = load_pixels(first(data.train, max(512, batch_size * (steps + 2))), size)
    val = load_pixels(first(data.val, 2), size)
    ratios, plain = [], []
    for i in range(times_rounds * rounds):
        models = [timm.create_model(name, num_classes=10) for _ in range(2)]
        times = {}
        for which in ("engine", "bare") if i % 2 else ("bare", "engine"):
            if which == "engine":
                times[which] = engine(models[0], images, val, batch_size, steps)
            else:
                times[which] = bare(models[1], images, batch_size, steps)
        ratios.append(times["engine"] / times["bare"])
        plain.append(times["bare"][0])
        print(
            f"{name}: bare {1000 * plain[-1]:.1f} ms a step; by the clock, processors: {ratios[-1].round(3)}",
            flush=True,
        )
    quartiles = np.quantile(ratios, (0.25, 0.5, 0.75), axis=0)
    return {
        "by the clock": quartiles[:, 0].tolist(),
        "of processors": quartiles[:, 1].tolist(),
        "bare_ms": [1000 * statistics.median(plain)],
    }


def first(images: ImageSet, count: int) -> ImageSet:
    """The first images of a set."""
    return images.subset(np.arange(count))


def shown(quartiles: list[float]) -> str:
    """``+3.1 % (+2.0 to +4.2)``."""
    low, middle, high = (100 * (ratio - 1) for ratio in quartiles)
    return f"{middle:+.1f} % ({low:+.1f} to {high:+.1f})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    start = time.perf_counter()
    found = {name: measure(name, rounds) for name in CASES}
    record(
        "overhead",
        what=f"Trainer against a bare PyTorch loop, {torch.get_num_threads()} threads: wall time of a step, median and "
        f"quartiles of {4 * rounds} pairs, for ViT-S of {2 * rounds}",
        asked=f"at most {100 * ASKED:.0f} %",
        found="; ".join(f"{name} {shown(of['by the clock'])}" for name, of in found.items()),
        holds=max(of["by the clock"][1] for of in found.values()) <= 1 + ASKED,
        seed=0,
        seconds=time.perf_counter() - start,
        note="CPU time, which other work on the machine affects less: "
        + "; ".join(f"{name} {shown(of['of processors'])}" for name, of in found.items()),
        cases=found,
    )
