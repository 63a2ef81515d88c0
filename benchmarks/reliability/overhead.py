"""What the engine costs: seconds of a step under `glocal.training.train` against a loop written out, in turn.

    python benchmarks/reliability/overhead.py [--rounds 9]

Both train the same model on the same images, shuffled, flipped and normalised alike, by fused AdamW with clipping and a
cosine. The engine also logs, looks for values that are not finite and for signals, seeds every step and keeps a curve.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.reliability.record import record

import glocal  # noqa: F401  (registers the models)
from glocal.data import ImageSet, load_data
from glocal.signals import StopRequest
from glocal.training import (
    Budget,
    ImageBatches,
    Keeping,
    Normalize,
    TrainingBatches,
    load_pixels,
    load_recipe,
    normalisation,
    train,
)

ASKED = 0.05
CASES = {"resnet_micro": (32, 32, 60), "vit_micro": (32, 32, 60), "glocal_vit_small_patch16_224": (224, 8, 4)}
"""Model -> side in pixels, images of a step, steps of a round."""


def engine(model: nn.Module, images: ImageBatches, val: ImageBatches, batch_size: int, steps: int) -> float:
    """Seconds of a step under the engine, as a run of `glocal train` has it."""
    recipe = load_recipe("micro", settings=[f"batch_size={batch_size}"])
    rows: list[object] = []
    result = train(
        model,
        TrainingBatches(images, recipe, 0),
        val,
        recipe=recipe,
        budget=Budget(steps * batch_size / len(images), "ep"),
        seed=0,
        macs=1,
        prepare=Normalize(*normalisation(model)),
        keeping=Keeping(log=rows.append),
        stop=StopRequest(),
        curve_points=1,
    )
    assert result.steps == steps
    return result.seconds / steps


def bare(model: nn.Module, images: ImageBatches, batch_size: int, steps: int) -> float:
    """Seconds of a step of a loop that does the same and nothing else."""
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    mean, std = (255 * torch.tensor(x).view(-1, 1, 1) for x in normalisation(model))
    order = np.random.default_rng(0).permutation(len(images))
    start = time.perf_counter()
    for step in range(steps):
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
    return (time.perf_counter() - start) / steps


def measure(name: str, rounds: int) -> dict[str, float]:
    """Median over rounds of the ratio of the two, measured one after the other, in either order."""
    size, batch_size, steps = CASES[name]
    data = load_data("fashion-mini")
    images = load_pixels(first(data.train, max(512, batch_size * steps)), size)
    val = load_pixels(first(data.val, 2), size)
    ratios, seconds = [], []
    for i in range(rounds):
        torch.manual_seed(0)
        models = [timm.create_model(name, num_classes=10) for _ in range(2)]
        times = [0.0, 0.0]
        for which in (0, 1) if i % 2 else (1, 0):
            if which:
                times[1] = engine(models[1], images, val, batch_size, steps)
            else:
                times[0] = bare(models[0], images, batch_size, steps)
        ratios.append(times[1] / times[0])
        seconds.append(times[0])
        print(
            f"{name}: bare {1000 * times[0]:.2f} ms, engine {1000 * times[1]:.2f} ms a step, {ratios[-1]:.3f}",
            flush=True,
        )
    quarters = statistics.quantiles(ratios, n=4)
    return {
        "ratio": statistics.median(ratios),
        "low": quarters[0],
        "high": quarters[2],
        "bare_ms": 1000 * statistics.median(seconds),
    }


def first(images: ImageSet, count: int) -> ImageSet:
    """The first images of a set."""
    return images.subset(np.arange(count))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    start = time.perf_counter()
    found = {name: measure(name, rounds) for name in CASES}
    worst = max(of["ratio"] for of in found.values()) - 1
    shown = "; ".join(
        f"{name} {100 * (of['ratio'] - 1):+.1f} % ({100 * (of['low'] - 1):+.1f} to {100 * (of['high'] - 1):+.1f})"
        for name, of in found.items()
    )
    record(
        "overhead",
        what=f"engine against a bare PyTorch loop, {torch.get_num_threads()} threads: seconds of a step, median and "
        f"quartiles of {rounds} pairs",
        asked=f"at most {100 * ASKED:.0f} %",
        found=shown,
        holds=worst <= ASKED,
        seed=0,
        seconds=time.perf_counter() - start,
        cases=found,
    )
