"""Micro models on the probes of `glocal.data.probes`, and two deliberately restricted ones.

    python benchmarks/probes.py

A CNN with shuffled pixels, in the same order for all images, has no neighbourhoods; a bag of patches sees patches
without their positions. Every model is trained with the recipe `micro` for a few epochs of 6,000 images, with three
seeds, on one thread. Results are written to docs/results/probes.json and probes.md after each run; the same command
resumes.
"""

import argparse
import json
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from glocal.bench import count_macs, describe_environment
from glocal.comparison import accuracy_interval
from glocal.comparison.distance import accuracy_by_distance
from glocal.data import DataSource, load_data
from glocal.data.probes import PROBES
from glocal.files import atomic_write_text
from glocal.models.creation import create
from glocal.models.io import ModelConfig
from glocal.tasks import ClassificationTask
from glocal.training import (
    Budget,
    TrainingBatches,
    load_pixels,
    load_recipe,
)
from glocal.training.trainer import Trainer

RESULT = Path(__file__).parents[1] / "docs" / "results" / "probes"
RECIPE, SEEDS, SIDE = "micro", (0, 1, 2), 32
EPOCHS = {"texture": 2, "pathfinder": 6, "arrangement": 3, "mix": 4}
PATCH = 5
"""Side of a patch of the bag, pixels."""


class BagOfPatches(nn.Module):
    """Every patch of 5x5 pixels gives logits, whatever its place; the answer is their mean.

    As in Brendel and Bethge 2019 (BagNet), https://arxiv.org/abs/1904.00760, but without padding, which would say where
    the border is.
    """

    def __init__(self, num_classes: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.patches = nn.Sequential(
            *_layer(3, 32, 3), *_layer(32, 48, 3), *_layer(48, 64, 1), nn.Conv2d(64, num_classes, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, classes)."""
        return self.patches(x).mean((2, 3))


class ShuffledPixels(nn.Module):
    """`resnet_micro` behind one order of the pixels, the same for all images and runs."""

    def __init__(self, num_classes: int, seed: int) -> None:
        super().__init__()
        self.model = create("resnet_micro", num_classes=num_classes, image_size=SIDE, seed=seed)
        order = torch.randperm(SIDE**2, generator=torch.Generator().manual_seed(0))
        self.register_buffer("order", order)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, classes)."""
        return self.model(x.flatten(2)[..., self.order].unflatten(2, x.shape[2:]))


def _layer(in_chs: int, out_chs: int, kernel: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(in_chs, out_chs, kernel, bias=False), nn.BatchNorm2d(out_chs), nn.ReLU()


LACKING: dict[str, Callable[[int, int], nn.Module]] = {
    "resnet_micro, pixels shuffled": ShuffledPixels,
    "bag of patches": BagOfPatches,
}
MODELS = ("resnet_micro", "botnet_micro", "vit_micro", *LACKING)


def make(name: str, num_classes: int, seed: int) -> nn.Module:
    """A model by its name in `MODELS`, or of the library."""
    if name in LACKING:
        return LACKING[name](num_classes, seed)
    return create(name, num_classes=num_classes, image_size=SIDE, seed=seed)


def learn(name: str, source: DataSource, *, seed: int, epochs: float) -> np.ndarray:
    """(images,) whether a model trained on a probe is right on each test image."""
    config = load_recipe(RECIPE).replace(seed=seed)
    train_images, val_images = (load_pixels(images, SIDE) for images in (source.train, source.val))
    model = make(name, len(source.classes), seed)
    reference = create("resnet_micro", num_classes=2, image_size=SIDE, seed=0)
    of = ModelConfig.of_classifier(reference, classes=source.classes, image_size=SIDE)
    task = ClassificationTask(of, config, labels=train_images.labels)
    budget = Budget.parse(f"{epochs:g}ep")
    trainer = Trainer(task, config, budget, macs=count_macs(model, SIDE), curve_points=1)
    result = trainer.fit(model, TrainingBatches(train_images, config, seed), val_images)
    right: np.ndarray = result.outcomes.predicted == result.outcomes.label
    return right


def conditions(run: dict[str, Any], plan: dict[str, Any]) -> tuple[Any, ...]:
    """Of a plan, what a run depends on."""
    return plan["recipe"], plan["epochs"][run["probe"]], plan["probes"][run["probe"]]


def plan() -> dict[str, Any]:
    """What the figures are of."""
    return {
        "recipe": load_recipe(RECIPE).to_recipe(),
        "epochs": EPOCHS,
        "seeds": list(SEEDS),
        "models": list(MODELS),
        "probes": {name: load_data(name).fingerprint for name in PROBES},
    }


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each probe and model: top-1, and by distance, with 95 % intervals over images and seeds."""
    rows = []
    for name in PROBES:
        distances = load_data(name).val.distances
        assert distances is not None
        for model in MODELS:
            own = [run for run in runs if (run["probe"], run["model"]) == (name, model)]
            if not own:
                continue
            right = {str(run["seed"]): unpacked(run["right"], len(distances)) for run in own}
            told = [{"id": str(run["seed"]), "model": model, "fraction": 1.0, "status": "ok"} for run in own]
            top1 = accuracy_interval(np.stack(list(right.values())))
            rows.append(
                {
                    "probe": name,
                    "model": model,
                    "seeds": len(own),
                    "chance": 1 / len(PROBES[name].classes),
                    "top1_mean": top1.mean,
                    "top1_ci": [top1.low, top1.high],
                    "by_distance": [
                        {key: row[key] for key in ("distance", "top1_mean", "top1_ci")}
                        for row in accuracy_by_distance(told, right, distances)
                    ],
                }
            )
    return rows


def packed(right: np.ndarray) -> str:
    """Booleans as hexadecimal digits, so that intervals can be made again."""
    return np.packbits(right).tobytes().hex()


def unpacked(text: str, count: int) -> np.ndarray:
    """What was `packed`."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=count).astype(bool)


def page(results: dict[str, Any]) -> str:
    """docs/results/probes.md."""
    machine, rows = results["environment"], results["summary"]
    minutes = sum(run["seconds"] for run in results["runs"]) / 60
    lines = [
        "# Micro models on the probes",
        "",
        f"By `{results['command']}` on {results['date']}: recipe `{RECIPE}`, epochs of 6,000 images, 1,500 "
        f"validation images, {len(SEEDS)} seeds, one thread of {machine['cpu']}, torch {machine['torch']}; "
        f"{minutes:.0f} minutes of CPU time in total. Top-1 in %, with 95 % intervals over validation images and "
        "seeds. The probes are described in [data.md](../data.md#probes).",
        "",
        "| | " + " | ".join(PROBES) + " |",
        "| --- " * (1 + len(PROBES)) + "|",
        "| epochs | " + " | ".join(str(EPOCHS[name]) for name in PROBES) + " |",
        "| chance | " + " | ".join(f"{100 / len(probe.classes):.1f}" for probe in PROBES.values()) + " |",
    ]
    found = {(row["probe"], row["model"]): row for row in rows}
    for model in MODELS:
        cells = [_cell(found.get((name, model))) for name in PROBES]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    lines += ["", f"*bag of patches*: mean logits of a small network on all patches of {PATCH}x{PATCH} pixels. "
              "*pixels shuffled*: in the same order for all images."]  # fmt: skip
    for name, probe in PROBES.items():
        header = " | ".join(map(str, probe.distances))
        lines += ["", f"## {name}, by distance", "", f"Pixels: {probe.option}.", "", f"| model | {header} |"]
        lines.append("| --- " * (1 + len(probe.distances)) + "|")
        for model in MODELS:
            if row := found.get((name, model)):
                lines.append(f"| {model} | " + " | ".join(_cell(part) for part in row["by_distance"]) + " |")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    low, high = (100 * value for value in row["top1_ci"])
    return f"{100 * row['top1_mean']:.1f} ({low:.0f}–{high:.0f})"


def main() -> None:
    """Train what is missing and write the page after each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--anew", action="store_true", help="leave earlier results out")
    anew = parser.parse_args().anew
    torch.set_num_threads(1)
    path, asked = RESULT.with_suffix(".json"), plan()
    before = json.loads(path.read_text()) if path.exists() and not anew else {"plan": {}, "runs": []}
    runs = [run for run in before["runs"] if conditions(run, before["plan"]) == conditions(run, asked)]
    done = {(run["probe"], run["model"], run["seed"]) for run in runs}
    for seed in SEEDS:
        for name in PROBES:
            source = load_data(name)
            for model in MODELS:
                if (name, model, seed) in done:
                    continue
                start = time.process_time()
                right = learn(model, source, seed=seed, epochs=EPOCHS[name])
                seconds = time.process_time() - start
                print(f"{name}, {model}, seed {seed}: {100 * right.mean():.1f} % after {seconds:.0f} s", flush=True)
                runs.append({"probe": name, "model": model, "seed": seed, "top1": float(right.mean()),
                             "seconds": round(seconds, 1), "right": packed(right)})  # fmt: skip
                write({"command": "python benchmarks/probes.py", "date": date.today().isoformat(),
                       "environment": describe_environment(), "plan": asked, "runs": runs})  # fmt: skip


def write(results: dict[str, Any]) -> None:
    """Both files, with the summary of the runs so far."""
    results = results | {"summary": summary(results["runs"])}
    atomic_write_text(RESULT.with_suffix(".json"), json.dumps(results, indent=1) + "\n")
    atomic_write_text(RESULT.with_suffix(".md"), page(results))


if __name__ == "__main__":
    main()
