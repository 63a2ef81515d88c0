"""Overhead of the training engine of two checkouts against a bare loop, in turn: writes docs/results/overhead.md.

    python benchmarks/reliability/overhead_against.py TREE [--rounds 24]

One process for each checkout, both alive all the time; a round runs the engine and the bare loop of `overhead.py` in
the one and then in the other, in alternating order. The bare loops are the same code.
"""

import argparse
import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
MODELS = ("resnet_micro", "vit_micro", "glocal_vit_small_patch16_224")


def serve() -> None:
    """Read "MODEL ROUND" lines; write the two ratios of engine to bare loop, by the clock and of the processors."""
    import timm
    from benchmarks.reliability import overhead

    from glocal.data import load_data
    from glocal.training import load_pixels

    data = load_data("fashion-mini")
    prepared = {}
    for line in sys.stdin:
        name, number = line.split()
        size, batch_size, steps, _ = overhead.CASES[name]
        if name not in prepared:
            count = max(512, batch_size * (steps + 2))
            sets = (overhead.first(data.train, count), overhead.first(data.val, 2))
            prepared[name] = [load_pixels(images, size) for images in sets]
        images, val = prepared[name]
        models = [timm.create_model(name, num_classes=10) for _ in range(2)]
        runs = [
            lambda: overhead.engine(models[0], images, val, batch_size, steps),  # noqa: B023  (called in this round)
            lambda: overhead.bare(models[1], images, batch_size, steps),  # noqa: B023
        ]
        order = (0, 1) if int(number) % 2 else (1, 0)
        seconds = {which: runs[which]() for which in order}
        print("ratios", *(seconds[0] / seconds[1]), flush=True)


class Server:
    """The process of one checkout."""

    def __init__(self, tree: Path):
        path = os.pathsep.join([str(tree / "src"), str(tree)])
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve"], cwd=tree, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path, "OMP_WAIT_POLICY": "PASSIVE"},
        )  # fmt: skip

    def ratios(self, name: str, number: int) -> list[float]:
        """Of a round: by the clock, of the processors."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(name, number, file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("ratios "):
                return [float(ratio) for ratio in line.split()[1:]]
        raise RuntimeError(f"the process of {self.process.args!r} has ended")


def quartiles(values: np.ndarray) -> str:
    """``+3.1 % (+2.0 to +4.2)`` of ratios."""
    low, middle, high = 100 * (np.quantile(values, (0.25, 0.5, 0.75)) - 1)
    return f"{middle:+.1f} % ({low:+.1f} to {high:+.1f})"


def difference(base: np.ndarray, new: np.ndarray) -> str:
    """Median of the paired differences in points, with its bootstrap 95 % interval."""
    pairs = 100 * (new - base)
    draws = np.random.default_rng(0).choice(pairs, (5000, len(pairs)))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    return f"{np.median(pairs):+.1f} ({low:+.1f} to {high:+.1f})"


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tree", type=Path, help="the other checkout")
    parser.add_argument("--rounds", type=int, default=24, help="of a micro model; half as many of ViT-S")
    arguments = parser.parse_args()
    trees = [arguments.tree.resolve(), ROOT]
    servers = [Server(tree) for tree in trees]
    names = [subprocess.check_output(["git", "rev-parse", "--short=10", "HEAD"], cwd=tree, text=True).strip()
             for tree in trees]  # fmt: skip
    rows = []
    for model in MODELS:
        rounds = arguments.rounds // (1 if "micro" in model else 2)
        for server in servers:
            server.ratios(model, 0)  # warms up
        ratios = np.empty((2, rounds, 2))  # checkout, round, clock or processors
        for number in range(rounds):
            for which in ((0, 1), (1, 0))[number // 2 % 2]:
                ratios[which, number] = servers[which].ratios(model, number)
            print(model, number, ratios[:, number].round(3).tolist(), flush=True)
        for column, kind in enumerate(("wall time", "processor time")):
            base, new = ratios[0, :, column], ratios[1, :, column]
            rows.append(
                f"| {model} | {kind} | {rounds} | {quartiles(base)} | {quartiles(new)} | {difference(base, new)} |"
            )
    from glocal.bench import describe_environment

    machine = describe_environment()
    page = [
        "# Overhead of the training engine, two commits in turn",
        "",
        "Time of a step under the engine against a bare PyTorch loop with the same model, images and optimizer: median",
        "and quartiles over rounds. Difference: median over rounds of (new - old), in points, with its bootstrap 95 %",
        f"interval. `python benchmarks/reliability/overhead_against.py TREE --rounds {arguments.rounds}`,",
        f"{date.today()}; {machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads,",
        f"torch {machine['torch']}.",
        "",
        f"| model | of | rounds | {names[0]} | {names[1]} | difference |",
        "| --- | --- | --- | --- | --- | --- |",
        *rows,
        "",
    ]
    (ROOT / "docs/results/overhead.md").write_text("\n".join(page), encoding="utf-8")
    for server in servers:
        server.process.kill()


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["--serve"] else main()
