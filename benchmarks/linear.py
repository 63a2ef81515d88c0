"""`glocal.layers.Linear` against `torch.nn.Linear`, on this machine: the shapes of the families' layers.

    python benchmarks/linear.py

Each pair in turn in one process, a process for each number of threads, with all instructions that oneDNN finds and with
it held to AVX2, where the library that torch gives linear layers to is not behind: what processors without that gap
have to expect. Writes docs/results/linear.json and linear.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line has it: threads sleep while they wait

import torch
from torch import nn

from glocal.bench import describe_environment
from glocal.files import atomic_write_text
from glocal.layers import Linear

RESULT = Path(__file__).parents[1] / "docs" / "results" / "linear"
SHAPES = {
    "ViT-S, batch 1: qkv": (197, 384, 1152),
    "ViT-S, batch 1: fc2": (197, 1536, 384),
    "ViT-S, batch 8: fc1": (1576, 384, 1536),
    "ViT-B, batch 8: fc1": (1576, 768, 3072),
    "T2T-ViT, batch 1: first kqv": (3136, 147, 192),
    "CvT-13, batch 1: first fc1": (3136, 64, 256),
    "CAT-S, batch 1: third stage fc1": (196, 384, 1536),
    "micro, batch 32: qkv": (2080, 64, 192),
    "micro, batch 32: fc1": (2080, 96, 384),
}
"""Layer -> tokens, channels in, channels out."""
SETTINGS = ((1, ""), (2, ""), (1, "AVX2"), (2, "AVX2"))
"""Threads, and what oneDNN is held to."""


def seconds(functions: list[Callable[[], Any]], rounds: int) -> list[float]:
    """Median seconds of each, called in turn."""
    taken: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds + 3):  # three to warm up
        for function, times in zip(functions, taken, strict=True):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
    return [statistics.median(times[3:]) for times in taken]


def measure(threads: int, rounds: int) -> list[dict[str, Any]]:
    """A row a shape: milliseconds of torch's layer and of ours, forward alone and with the backward pass."""
    torch.set_num_threads(threads)
    rows = []
    for label, (tokens, width, out) in SHAPES.items():
        torch.manual_seed(0)
        layers = [nn.Linear(width, out), Linear(width, out)]
        layers[1].load_state_dict(layers[0].state_dict())
        x, gradient = torch.randn(1, tokens, width, requires_grad=True), torch.randn(1, tokens, out)

        def forward(layer: nn.Module, x: torch.Tensor = x) -> torch.Tensor:
            with torch.inference_mode():
                return layer(x)

        def both(layer: nn.Module, x: torch.Tensor = x, gradient: torch.Tensor = gradient) -> None:
            x.grad = None
            layer.zero_grad()
            layer(x).backward(gradient)

        expected, got = (forward(layer) for layer in layers)
        row: dict[str, Any] = {"layer": label, "shape": (tokens, width, out)}
        row["difference"] = float((got - expected).abs().max() / expected.abs().max())
        for key, function in (("forward", forward), ("both", both)):
            row[key] = [1000 * t for t in seconds([lambda m=m, f=function: f(m) for m in layers], rounds)]
        rows.append(row)
    return rows


def page(results: dict[str, Any]) -> str:
    """docs/results/linear.md."""
    machine = results["environment"]
    lines = [
        "# Linear layers by convolution",
        "",
        f"By `{results['command']}` on {results['date']}: {machine['cpu']}, float32, torch {machine['torch']}. Times "
        "of `torch.nn.Linear` over those of `glocal.layers.Linear`, medians of interleaved runs in one process; above "
        "1 ours is faster. Forward pass only / with backward pass. Largest difference of outputs relative to "
        f"the largest output: {results['difference']:.1e}.",
        "",
        "| layer | tokens x in x out | "
        + " | ".join(f"{t} thread{'s' * (t > 1)}{', ' * bool(i)}{i}" for t, i in SETTINGS)
        + " |",
        "| --- " * (2 + len(SETTINGS)) + "|",
    ]
    for index, (label, shape) in enumerate(SHAPES.items()):
        cells = []
        for rows in results["rows"]:
            row = rows[index]
            cells.append(" / ".join(f"{row[key][0] / row[key][1]:.2f}" for key in ("forward", "both")))
        lines.append(f"| {label} | {' x '.join(map(str, shape))} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "AVX2: oneDNN limited to AVX2 (`ONEDNN_MAX_CPU_ISA`), as on processors where both libraries are equally fast: "
        "there `Linear` is `torch.nn.Linear`. No Intel processor was measured.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure in processes of their own and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int, help="measure in this process and print the rows")
    args = parser.parse_args()
    if args.threads:
        print(json.dumps(measure(args.threads, args.rounds)))
        return
    found = []
    for threads, isa in SETTINGS:
        command = [sys.executable, __file__, "--threads", str(threads), "--rounds", str(args.rounds)]
        environment = os.environ | ({"ONEDNN_MAX_CPU_ISA": isa} if isa else {})
        output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        found.append(json.loads(output))
        print(f"{threads} threads {isa}: done", flush=True)
    results = {
        "command": "python benchmarks/linear.py",
        "date": date.today().isoformat(),
        "environment": describe_environment(),
        "difference": max(row["difference"] for rows in found for row in rows),
        "rows": found,
    }
    atomic_write_text(RESULT.with_suffix(".json"), json.dumps(results, indent=1) + "\n")
    atomic_write_text(RESULT.with_suffix(".md"), page(results))


if __name__ == "__main__":
    main()
