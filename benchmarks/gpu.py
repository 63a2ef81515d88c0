"""Speed on a GPU, against the plain writing of each paper's formula and against timm where it has the model.

    python benchmarks/gpu.py [--models botnet50,...] [--parts inference,training,latency,detection] [--seconds 2]

Inference in bfloat16 and float32, a training step in bfloat16, one image eager and with CUDA graphs
(`torch.compile(mode="reduce-overhead")`), BoTNet at a detector's size. Writes docs/results/gpu.json after each part of
a model, and gpu.md from it. ``--device cpu --images 2`` runs all of it anywhere, for a look at the script.
"""

import argparse
import copy
import json
import sys
from collections.abc import Callable
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.baselines import plain
from benchmarks.speed import ours, rows

from glocal.bench import compare, describe_environment, measure_limits
from glocal.bench.peers import is_installed, make_peer, peers_of
from glocal.bench.suite import many_compiled
from glocal.files import atomic_write_text

OUT = Path(__file__).parents[1] / "docs" / "results" / "gpu.json"
INFERENCE, TRAINING = 256, 128
"""Images of a pass."""
DETECTION = (800, 1344)
PARTS = ("inference", "training", "latency", "detection")
LEAST = 1.3  # asked of the families that nobody else has, inference and training
LEAST_GRAPH = 3.0
ASKED = {
    "glocal_resnet50": 1.0, "glocal_vit_small_patch16_224": 1.0, "glocal_vit_base_patch16_224": 1.0,
    "botnet50": LEAST, "t2t_vit_14": LEAST, "t2t_vit_t_14": LEAST, "cvt_13": LEAST, "cat_small": LEAST,
    "conformer_small_patch16": LEAST,
}  # fmt: skip


def contenders(name: str) -> dict[str, nn.Module]:
    """Ours, the plain form, and timm's of the same function; each in channels last too where there are convolutions."""
    model = ours(name)
    found: dict[str, nn.Module] = {"ours": model, "plain": plain(name, model)}
    for peer in filter(is_installed, peers_of(name)):
        made = make_peer(peer, name, model, 224)
        if made.same_function and made.source.startswith("timm"):
            found["timm"] = made.model.eval()
    if any(isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) for module in model.modules()):
        for label in tuple(found):
            last = copy.deepcopy(found[label])
            found[f"{label}, channels last"] = last.to(memory_format=torch.channels_last)
    return found


def inference(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Many images at once."""
    size = args.images or INFERENCE
    models = contenders(name)
    models["ours, compiled"] = torch.compile(copy.deepcopy(models["ours"]))
    models["plain, compiled"] = torch.compile(copy.deepcopy(models["plain"]))
    return {
        precision: timed(models, args, batch_size=max(1, size // share), precision=precision)
        for precision, share in (("bf16", 1), ("32", 4))
    }


def training(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """A step: forward, loss, backward, AdamW."""
    models = contenders(name)
    return {"bf16": timed(models, args, batch_size=args.images or TRAINING, precision="bf16", train=True)}


def latency(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One image."""
    model = ours(name)
    graphs = torch.compile(copy.deepcopy(model), mode="reduce-overhead")
    return {"bf16": timed({"ours": model, "ours, CUDA graphs": graphs}, args, batch_size=1, precision="bf16")}


def detection(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """BoTNet on images of a detector, as in its paper."""
    if name != "botnet50":
        return {}
    height, width = DETECTION if not args.images else (128, 192)
    model = ours(name, height)
    models = {"ours": model, "ours, compiled": torch.compile(copy.deepcopy(model))}
    found = {"image_size": [height, width]}
    return found | {"bf16": timed(models, args, batch_size=1, precision="bf16", image_size=(height, width))}


def timed(models: dict[str, nn.Module], args: argparse.Namespace, **kwargs: Any) -> list[dict[str, Any]]:
    """Rows of a measurement, each time against ours in its better memory format."""
    found = compare(models, "ours", device=args.device, seconds=args.seconds, **kwargs)
    return [{**row, "images": kwargs["batch_size"]} for row in rows(found)]


def page(results: dict[str, Any]) -> str:
    """docs/results/gpu.md."""
    machine, limits = results["environment"], results["limits"]
    lines = [
        "# Speed on a GPU",
        "",
        f"By `{results['command']}` on {results['date']}: {machine['gpu'] or machine['cpu']}, torch "
        f"{machine['torch']}, timm {machine['timm']}. Ratios are medians of pairs from interleaved rounds of one "
        f"process; above 1 ours is the faster. The device gave {limits['32']['gflops'] / 1e3:.1f} TFLOP/s in "
        f"float32 and {limits['bf16']['gflops'] / 1e3:.1f} in bfloat16 in its fastest matrix product, "
        f"{limits['32']['gb_per_s']:.0f} "
        "GB/s of memory.",
        "",
    ]
    for part, of in product(PARTS, ("bf16", "32")):
        found = {name: parts[part][of] for name, parts in results["models"].items() if of in parts.get(part, {})}
        if found:
            lines += [f"## {part.capitalize()}, {'bfloat16' if of == 'bf16' else 'float32'}", "",
                      "| model | images | ours, ms | others over ours | asked | holds |",
                      "| --- | --- | --- | --- | --- | --- |"]  # fmt: skip
            lines += [_row(name, part, of, cells) for name, cells in found.items()] + [""]
    return "\n".join(lines)


def _row(name: str, part: str, of: str, cells: list[dict[str, Any]]) -> str:
    by_name = {cell["name"]: cell for cell in cells}
    best = _quickest(by_name, lambda label: label in ("ours", "ours, channels last"))
    others = [
        f"{label} {cell['ratio'] / best['ratio']:.2f}" if cell["ratio"] else f"{label}: {cell['error']}"
        for label, cell in by_name.items()
        if cell is not best
    ]
    asked, ratio = "", None
    if part == "latency":
        asked, graphs = f"graphs {LEAST_GRAPH}", by_name["ours, CUDA graphs"]
        ratio = best["ratio"] / graphs["ratio"] / LEAST_GRAPH if graphs["ratio"] else 0.0
    elif part in ("inference", "training") and of == "bf16":
        whose = "timm" if "timm" in by_name else "plain"
        peer = _quickest(by_name, lambda label: label in (whose, f"{whose}, channels last"))
        asked, ratio = f"{whose} {ASKED[name]}", peer["ratio"] / best["ratio"] / ASKED[name]
    holds = "" if ratio is None else "yes" if ratio >= 1 else "**no**"
    return f"| {name} | {best['images']} | {best['ms']:.2f} | {'; '.join(others)} | {asked} | {holds} |"


def _quickest(by_name: dict[str, dict[str, Any]], wanted: Callable[[str], bool]) -> dict[str, Any]:
    return min((cell for label, cell in by_name.items() if wanted(label) and cell["ratio"]), key=lambda c: c["ratio"])


def main() -> None:
    """Measure what is asked for, keep the rest of what was measured before."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(ASKED))
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--seconds", type=float, default=2.0, help="for each contender of a measurement")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=int, help="in place of those of each part")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    results: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"models": {}}
    results |= {
        "command": "python benchmarks/gpu.py",
        "date": date.today().isoformat(),
        "environment": describe_environment(args.device),
        "limits": {of: vars(measure_limits(args.device, precision=of)) for of in ("32", "bf16")},
    }
    for name, part in product(args.models.split(","), args.parts.split(",")):
        with many_compiled():
            results["models"].setdefault(name, {})[part] = globals()[part](name, args)
        torch.compiler.reset()
        atomic_write_text(args.out, json.dumps(results, indent=1) + "\n")
        atomic_write_text(args.out.with_suffix(".md"), page(results))
        print(f"{name}: {part}", flush=True)


if __name__ == "__main__":
    main()
