"""A bank of complete training runs, on which searches are replayed: which images each model gets right, as it trains.

    python benchmarks/bank.py --materials DIR              runs what is missing, into docs/results/bank/SET.npz
    python benchmarks/bank.py --materials DIR --only mix,texture --jobs 2

Seven micro models, five seeds, nine sets, each run as `glocal compare` trains it (recipe micro, 32 pixels, 5 epochs,
one thread), evaluated ten times. A file holds, for each model, seed and evaluation, one bit an image, and the processor
seconds of training and of evaluation so far. It is written after each run, so the command can be stopped and repeated.
"""

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glocal.bench import describe_environment
from glocal.data import load_data
from glocal.files import atomic_write_bytes
from glocal.metrics.classification import Outcomes
from glocal.models.micro import MICRO_MODELS
from glocal.tasks import ClassificationTask
from glocal.training import load_recipe
from glocal.training.trainable import Score
from glocal.training.trainer import Trainer

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "bank"
SETS = {
    "tuxpaint": ("tuxpaint", 1.0), "openclipart": ("openclipart", 1.0),
    "fashion-mini-10": ("fashion-mini", 0.1), "fashion-mini-30": ("fashion-mini", 0.3),
    "texture": ("texture", 1.0), "arrangement": ("arrangement", 1.0),
    "mix": ("mix", 1.0), "fashion-mini": ("fashion-mini", 1.0), "pathfinder": ("pathfinder", 1.0),
}  # fmt: skip
"""Name -> data, and the fraction of its training images."""
FOLDERS = ("tuxpaint", "openclipart")
SEEDS = range(5)
EPOCHS, EVALUATIONS, SIZE = 5, 10, 32


class Recorded(ClassificationTask):
    """Keeps what each evaluation finds."""

    def start(self) -> None:
        """Start the processor's clock."""
        self.right: list[np.ndarray] = []
        self.seconds: list[tuple[float, float]] = []
        self.trained = self.evaluated = 0.0
        self.clock = time.process_time()

    def progress(self, _: Any) -> None:
        """After a step."""
        now = time.process_time()
        self.trained, self.clock = self.trained + now - self.clock, now

    def score(self, outcomes: Outcomes) -> Score:
        """After an evaluation; the step before it counts to it, which is one of many."""
        now = time.process_time()
        self.evaluated, self.clock = self.evaluated + now - self.clock, now
        self.right.append(outcomes.predicted == outcomes.label)
        self.seconds.append((self.trained, self.evaluated))
        return super().score(outcomes)


def record(materials: Path, name: str, model: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One run: (evaluations, images) booleans and (evaluations, 2) processor seconds."""
    torch.set_num_threads(1)
    data_name, fraction = SETS[name]
    data = load_data(str(materials / data_name) if name in FOLDERS else data_name, on_error="skip")
    train = data.train.fraction(fraction, 0)
    data = replace(data, train=train)
    recipe = load_recipe("micro").replace(
        name=model, seed=seed, image_size=SIZE, epochs=EPOCHS, device="cpu", evaluate_every_epochs=EPOCHS / EVALUATIONS
    )
    task = Recorded.for_data(data, recipe)
    network = task.create_model()
    datasets = task.datasets()
    task.start()
    trainer = Trainer(task, recipe, macs=task.count_macs(network), curve_points=None, progress=task.progress)
    trainer.fit(network, *datasets)
    return np.stack(task.right), np.array(task.seconds)


def main(arguments: list[str]) -> None:
    """Record what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--materials", type=Path, required=True, help="folder of benchmarks/answer.py's downloads")
    parser.add_argument("--only", default=",".join(SETS))
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args(arguments)
    RESULTS.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        for name in options.only.split(","):
            path = RESULTS / f"{name}.npz"
            bank = dict(np.load(path)) if path.exists() else {}
            missing = [(model, seed) for seed in SEEDS for model in MICRO_MODELS if f"{model}/{seed}/right" not in bank]
            going = {key: pool.submit(record, options.materials, name, *key) for key in missing}
            for (model, seed), run in going.items():
                right, seconds = run.result()
                bank |= {"images": np.array(right.shape[1]), "cpu": np.array(describe_environment()["cpu"])}
                bank[f"{model}/{seed}/right"] = np.packbits(right, axis=1)
                bank[f"{model}/{seed}/seconds"] = seconds.astype(np.float32)
                _write(path, bank)
                print(
                    f"{name} {model} seed {seed}: {100 * right[-1].mean():.1f} %, {seconds[-1].sum():.0f} s", flush=True
                )


def _write(path: Path, bank: dict[str, Any]) -> None:
    from io import BytesIO

    buffer = BytesIO()
    np.savez_compressed(buffer, **bank)
    atomic_write_bytes(path, buffer.getvalue())


if __name__ == "__main__":
    main(sys.argv[1:])
