"""Speed and memory of our models against what a user could take instead, on this machine.

    python benchmarks/speed.py [--models botnet50,...] [--parts eager,runtimes,training,memory,sides] [--seconds 6]
    python benchmarks/speed.py --parts files --files DIR; python benchmarks/speed.py --parts runtimes --files DIR

The second way exports first, which takes long and needs no quiet machine, and measures then.

Beside ours, in interleaved rounds of one process: the plain writing of each paper's formula (`benchmarks/baselines`),
and what timm, torchvision and transformers have of the same function; all with the same weights, and their outputs
compared. Written after each model into docs/results/speed.json, and docs/results/speed.md and a figure from it.
"""

import argparse
import copy
import io
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line has it: threads sleep while they wait

import matplotlib as mpl
import torch
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.baselines import plain

import glocal
from glocal.bench import Row, compare, count_macs, describe_environment, measure_limits, peak_inference_memory
from glocal.bench.peers import is_installed, make_peer, peers_of, randomize_weights
from glocal.export import export_model, load_exported
from glocal.files import atomic_write_text
from glocal.report.figures import STYLE, Looks, stand_alone

OUT = Path(__file__).parents[1] / "docs" / "results" / "speed.json"
FIGURE = OUT.parents[1] / "figures" / "speed-sides.svg"
BATCHES = (1, 8)
TRAINED = 4
"""Images of a training step."""
SIDES = (224, 320, 448, 640, 896, 1024)
PARTS = ("eager", "runtimes", "training", "memory", "sides")
ENDS = {"onnx": ".onnx", "openvino": ".xml"}

# Model -> asked: eager against the best eager peer, exported against it, a training step against the plain form, and
# the side in pixels at which memory is measured with the share of the plain form's that it may take.
ASKED: dict[str, tuple[float, float, float, tuple[int, float] | None]] = {
    "glocal_resnet50": (1.0, 1.8, 1.0, None),
    "glocal_vit_small_patch16_224": (1.0, 1.8, 1.0, None),
    "glocal_vit_base_patch16_224": (1.0, 1.8, 1.0, None),
    "botnet50": (1.05, 1.7, 1.05, (1024, 1 / 4)),
    "t2t_vit_14": (1.1, 1.8, 1.1, None),
    "t2t_vit_t_14": (1.4, 2.5, 1.15, (448, 1 / 8)),
    "cvt_13": (1.1, 2.0, 1.1, (1024, 1 / 20)),
    "cat_small": (1.1, 2.0, 1.3, (896, 1 / 2.5)),
    "conformer_small_patch16": (1.15, 1.9, 1.2, (1024, 1 / 3)),
}


def ours(name: str, image_size: int = 224) -> nn.Module:
    """Our model with weights and statistics drawn anew, so that no part of it is idle."""
    torch.manual_seed(0)
    model = glocal.create_model(name, img_size=image_size).eval()
    randomize_weights(model, image_size)
    return model


def peers(name: str, model: nn.Module) -> dict[str, nn.Module]:
    """The plain form, and what installed packages have of the same function."""
    found = {"plain": plain(name, model)}
    for peer in filter(is_installed, peers_of(name)):
        made = make_peer(peer, name, model, 224)
        if made.same_function:
            found[made.source] = made.model.eval()
            found[f"{made.source}, channels last"] = _channels_last(made.model)
    if "resnet" in name or "botnet" in name or "conformer" in name:
        found["plain, channels last"] = _channels_last(plain(name, model))
    return found


def _channels_last(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).eval().to(memory_format=torch.channels_last)


def difference(model: Callable[[torch.Tensor], torch.Tensor], other: Callable[..., Any], size: int = 224) -> float:
    """Largest difference of their outputs, as a share of the largest output."""
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = model(images)
        return float((other(images) - expected).abs().max() / expected.abs().max())


def rows(found: list[Row]) -> list[dict[str, Any]]:
    """What is kept of a measurement: each model's time and how many times ours it is."""
    return [
        {
            "name": row.name, "ms": row.ms, "ratio": row.ratio, "low": row.ratio_low, "high": row.ratio_high,
            "rounds": row.rounds, "error": row.error,
        }
        for row in found
    ]  # fmt: skip


def eager(name: str, seconds: float) -> dict[str, Any]:
    """Inference as torch runs it, against all peers."""
    model = ours(name)
    others = peers(name, model)
    found: dict[str, Any] = {"differences": {label: difference(model, other) for label, other in others.items()}}
    mine = {"ours": model, "optimized": glocal.optimize(model)}
    if any("channels last" in other for other in others):
        mine["ours, channels last"] = _channels_last(model)
    for label, one in mine.items():
        found["differences"][label] = difference(model, one)
    contenders = {**mine, **others}
    for batch in BATCHES:
        found[str(batch)] = rows(compare(contenders, "ours", batch_size=batch, seconds=seconds))
    return found


def files(name: str, folder: Path) -> dict[str, Path | str]:
    """Our model and the plain form as files of both runtimes, unless they are there: by label, or why there is none.

    Files have a fixed batch and size, as one who wants speed exports them.
    """
    found: dict[str, Path | str] = {}
    model = ours(name)
    for (label, source), batch in product((("ours", model), ("plain", plain(name, model))), BATCHES):
        for to, runtime in (("onnx", "onnxruntime"), ("openvino", "openvino")):
            file = folder / f"{name}-{label}-{batch}{ENDS[to]}"
            key = f"{label} in {runtime}, batch {batch}"
            found[key] = file
            if not file.exists():
                try:
                    export_model(source, file, to=to, image_size=224, batch_size=batch)
                except Exception as error:  # the plain form may not export: that is a finding too
                    found[key] = str(error).splitlines()[0].replace(f"{folder}{os.sep}", "")[:200]
    return found


def runtimes(name: str, seconds: float, eagerly: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Our exported files against the quickest eager peers, and against the plain form exported alike."""
    model = ours(name)
    every = peers(name, model)
    quickest = {best(eagerly[str(batch)], is_peer)["name"] for batch in BATCHES} if eagerly else every
    others = {label: other for label, other in every.items() if label == "plain" or label in quickest}
    exported = files(name, folder)
    found: dict[str, Any] = {"missing": {key: file for key, file in exported.items() if isinstance(file, str)}}
    for batch in BATCHES:
        contenders: dict[str, Any] = {"ours": model, **others}
        for label, runtime in product(("ours", "plain"), ("onnxruntime", "openvino")):
            file = exported[f"{label} in {runtime}, batch {batch}"]
            if isinstance(file, Path):
                run = load_exported(file, runtime=runtime, threads=torch.get_num_threads())
                contenders[f"{label} in {runtime}"] = run
        found[str(batch)] = rows(compare(contenders, "ours", batch_size=batch, seconds=seconds))
    return found


def training(name: str, seconds: float) -> dict[str, Any]:
    """A training step: forward, loss, backward, AdamW."""
    model = ours(name)
    others = {label: other for label, other in peers(name, model).items() if "channels last" not in label}
    if name.startswith("cat"):
        others["plain, checkpointed as released"] = plain(name, model, checkpoint=True)
    contenders = {"ours": model, **others}
    return {str(TRAINED): rows(compare(contenders, "ours", batch_size=TRAINED, seconds=seconds, train=True))}


def memory(name: str, seconds: float) -> dict[str, Any]:
    """Peak of a forward pass of one image at high resolution, by the sizes of all live tensors."""
    asked = ASKED[name][3]
    if asked is None:
        return {}
    side = asked[0]
    model = ours(name, side)
    found = {"side": side}
    for label, one in (("ours", model), ("plain", plain(name, model, image_size=side))):
        weights = sum(t.numel() * t.element_size() for t in (*one.parameters(), *one.buffers())) / 2**20
        found[label] = peak_inference_memory(one, (1, 3, side, side)) - weights
    return found


def sides(name: str, seconds: float) -> dict[str, Any]:
    """Time and memory against the side of the image, with the exponents between 224 pixels and the largest."""
    found: dict[str, Any] = {}
    for side in SIDES:
        model = ours(name, side)
        timed = compare({"ours": model}, "ours", image_size=side, batch_size=1, seconds=seconds / 3)[0]
        found[str(side)] = {
            "ms": timed.ms,
            "mib": peak_inference_memory(model, (1, 3, side, side)),
            "gmacs": count_macs(model, side) / 1e9,
            "error": timed.error,
        }
    first, last = found[str(SIDES[0])], found[str(SIDES[-1])]
    if first["ms"] and last["ms"]:
        growth = math.log(SIDES[-1] / SIDES[0])
        found["exponents"] = {key: math.log(last[key] / first[key]) / growth for key in ("ms", "mib", "gmacs")}
    return found


def best(found: list[dict[str, Any]], wanted: Callable[[str], bool]) -> dict[str, Any] | None:
    """The fastest of those whose names are wanted."""
    return min((row for row in found if row["ms"] and wanted(row["name"])), key=lambda row: row["ratio"], default=None)


def is_peer(name: str) -> bool:
    """Whether a row is another's model in eager torch."""
    return not name.startswith("ours") and name != "optimized" and " in " not in name


def page(results: dict[str, Any]) -> str:
    """docs/results/speed.md."""
    machine = results["environment"]
    lines = [
        "# Speed and memory",
        "",
        f"By `{results['command']}` on {results['date']}: {machine['cpu']}, {machine['threads']} threads, float32, "
        f"torch {machine['torch']}, timm {machine['timm']}. Ratios are medians of pairs from interleaved rounds in one "
        "process, with 90 % intervals in brackets; above 1 ours is faster. All compute the same function with the "
        f"same weights (largest difference of outputs in speed.json). {results['note']}",
        "",
        f"The machine reaches {results['limits']['gflops']:.0f} GFLOP/s in its fastest matrix product and "
        f"{results['limits']['gb_per_s']:.0f} GB/s of memory bandwidth. Nothing here was measured on a GPU.",
        "",
    ]
    for table in (_eager_table, _runtime_table, _training_table, _memory_table, _sides_table):
        section = table(results)
        if sum(line.startswith("|") for line in section) > 2:  # more than its head
            lines += section
    return "\n".join(lines) + "\n"


def _ratio(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"


def _holds(ratio: float, asked: float) -> str:
    return "yes" if ratio >= asked else "**no**"


def _eager_table(results: dict[str, Any]) -> list[str]:
    lines = [
        "## Inference, eager, 224 pixels",
        "",
        "The best peer in its faster memory format over our plain model in its faster one, and over the model after "
        "`glocal.optimize`, which is available for inference. *plain*: a plain implementation of the paper's formula.",
        "",
        "| model | batch | ours, ms | best peer | its time over ours | over optimized | target | reached "
        "| plain over ours |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, parts in results["models"].items():
        for batch in BATCHES:
            found = parts.get("eager", {}).get(str(batch))
            peer = best(found, is_peer) if found else None
            if peer:
                by_name = {row["name"]: row for row in found}
                mine = best(found, lambda row: row.startswith("ours"))
                over = {key: peer[key] / mine["ratio"] for key in ("ratio", "low", "high")}
                optimized, asked = by_name["optimized"]["ratio"], ASKED[name][0]
                holds = (
                    "optimized" if over["ratio"] < asked <= peer["ratio"] / optimized else _holds(over["ratio"], asked)
                )
                lines.append(
                    f"| {name} | {batch} | {mine['ms']:.1f}{mine['name'].removeprefix('ours')} | {peer['name']} "
                    f"| {_ratio(over)} | {peer['ratio'] / optimized:.2f} | {ASKED[name][0]} | {holds} "
                    f"| {by_name['plain']['ratio'] / mine['ratio']:.2f} |"
                )
    return [*lines, ""]


def _runtime_table(results: dict[str, Any]) -> list[str]:
    lines = [
        "## Exported, 224 pixels",
        "",
        "Times relative to that of our exported file in the faster of ONNX Runtime and OpenVINO: the best eager peer, "
        "the plain implementation in eager torch, and the plain implementation exported in the same way in its faster "
        "runtime. Rate: MACs per second of our file relative to the machine's fastest matrix product.",
        "",
        "| model | batch | ours exported, ms | best peer over it | target | reached | plain, eager, over it "
        "| runtime | plain, exported, over it | rate |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    notes: list[str] = []
    for name, parts in results["models"].items():
        for batch in BATCHES:
            found = parts.get("runtimes", {}).get(str(batch))
            if found:
                peer = best(found, is_peer)
                file = best(found, lambda row: row.startswith("ours in "))
                theirs = best(found, lambda row: row.startswith("plain in "))
                if peer and file:
                    ratio = peer["ratio"] / file["ratio"]
                    plainly = next(row for row in found if row["name"] == "plain")
                    exported = f"{theirs['ratio'] / file['ratio']:.2f}" if theirs else "none"
                    gflops = 2 * batch * 1e3 * parts["sides"]["224"]["gmacs"] / file["ms"]
                    lines.append(
                        f"| {name} | {batch} | {file['ms']:.1f} | {ratio:.2f} | {ASKED[name][1]} "
                        f"| {_holds(ratio, ASKED[name][1])} | {plainly['ratio'] / file['ratio']:.2f} "
                        f"| {file['name'].removeprefix('ours in ')} "
                        f"| {exported} "
                        f"| {gflops / results['limits']['gflops']:.0%} |"
                    )
        for key, reason in parts.get("runtimes", {}).get("missing", {}).items():
            notes.append(f"* {name}, {key}: {reason}")
    return [*lines, "", *notes, *([""] if notes else [])]


def _training_table(results: dict[str, Any]) -> list[str]:
    lines = [
        f"## A training step, {TRAINED} images of 224 pixels",
        "",
        "| model | ours, ms | plain over ours | target | reached | others over ours |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, parts in results["models"].items():
        found = parts.get("training", {}).get(str(TRAINED))
        if found:
            by_name = {row["name"]: row for row in found}
            reference = by_name.get("plain, checkpointed as released", by_name["plain"])
            aside = [row for row in found if row["name"] not in ("ours", reference["name"]) and row["ratio"]]
            others = "; ".join(f"{row['name']} {row['ratio']:.2f}" for row in aside)
            lines.append(
                f"| {name} | {by_name['ours']['ms']:.0f} | {_ratio(reference)} | {ASKED[name][2]} "
                f"| {_holds(reference['ratio'], ASKED[name][2])} "
                f"| {others} |"
            )
    return [*lines, ""]


def _memory_table(results: dict[str, Any]) -> list[str]:
    lines = [
        "## Memory of a forward pass, one image",
        "",
        "Peak of all live tensors, without the weights, which are the same, and without scratch memory of kernels.",
        "",
        "| model | side | ours, MiB | plain, MiB | ours over plain | target | reached |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, parts in results["models"].items():
        found, asked = parts.get("memory"), ASKED[name][3]
        if found and asked:
            share = found["ours"] / found["plain"]
            lines.append(
                f"| {name} | {found['side']} | {found['ours']:.0f} | {found['plain']:.0f} | 1/{1 / share:.1f} "
                f"| 1/{1 / asked[1]:.1f} | {'yes' if share <= asked[1] else '**no**'} |"
            )
    return [*lines, ""]


def _sides_table(results: dict[str, Any]) -> list[str]:
    measured = {name: parts["sides"] for name, parts in results["models"].items() if "sides" in parts}
    if not measured:
        return []
    lines = [
        "## By image size",
        "",
        "Milliseconds / MiB (weights included) for one image, and the exponents between the smallest and largest side: "
        "2 is proportional to the number of pixels.",
        "",
        f"![time and memory by image size](../figures/{FIGURE.name})",
        "",
        "| model | " + " | ".join(map(str, SIDES)) + " | exponent of time | of memory | of MACs |",
        "| --- " * (len(SIDES) + 4) + "|",
    ]
    for name, found in measured.items():
        cells = [
            f"{at['ms']:.0f} / {at['mib']:.0f}" if at["ms"] else at["error"] for at in map(found.get, map(str, SIDES))
        ]
        exponents = found.get("exponents", {})
        lines.append(
            f"| {name} | " + " | ".join(cells) + f" | {exponents.get('ms', math.nan):.2f} | "
            f"{exponents.get('mib', math.nan):.2f} | {exponents.get('gmacs', math.nan):.2f} |"
        )
    return [*lines, ""]


def figure(results: dict[str, Any]) -> str:
    """Time and memory of one image against its side, both axes in powers, as SVG."""
    measured = {name: parts["sides"] for name, parts in results["models"].items() if "sides" in parts}
    looks = Looks(list(measured))
    with mpl.rc_context({**STYLE, "svg.hashsalt": "sides"}):
        drawn = Figure(figsize=(11, 5), layout="constrained")
        FigureCanvasSVG(drawn)
        titles = {"ms": "Milliseconds, one image", "mib": "MiB, weights included"}
        for axes, (key, title) in zip(drawn.subplots(1, 2), titles.items(), strict=True):
            for name, found in measured.items():
                points = [(side, found[str(side)][key]) for side in SIDES if found[str(side)][key]]
                x, y = zip(*points, strict=True)
                exponents = found.get("exponents", {})
                label = f"{name}: {exponents.get('ms', math.nan):.2f}, {exponents.get('mib', math.nan):.2f}"
                axes.plot(x, y, color=looks.colour[name], marker=looks.marker[name], label=label)
            axes.set(xscale="log", yscale="log", xlabel="side of the image, pixels")
            axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
            axes.set_xticks(SIDES, [str(side) if side != 896 else "" for side in SIDES])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        drawn.legend(*axes.get_legend_handles_labels(), title="exponent of time, of memory", loc="outside right")
        buffer = io.StringIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        drawn.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    return stand_alone(buffer.getvalue())


def main() -> None:
    """Measure what is asked for, keep the rest of what was measured before."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(ASKED))
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--seconds", type=float, default=6.0, help="for each contender of a measurement")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--page", action="store_true", help="only write the page again")
    parser.add_argument("--files", type=Path, help="where exported files are kept; by default they are not")
    args = parser.parse_args()
    temporary = tempfile.TemporaryDirectory()
    folder = args.files or Path(temporary.name)
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    if args.parts == "files":
        for name in args.models.split(","):
            files(name, folder)
            print(f"{name}: files", flush=True)
        return
    results: dict[str, Any] = json.loads(OUT.read_text()) if OUT.exists() else {"models": {}}
    if not args.page:
        results |= {
            "command": "python benchmarks/speed.py",
            "date": date.today().isoformat(),
            "environment": describe_environment(),
            "limits": vars(measure_limits()),
            "note": "Its cores are shared with other work: ratios hold, times vary by 20 to 30 %.",
        }
        for name, part in product(args.models.split(","), args.parts.split(",")):
            of_model = results["models"].setdefault(name, {})
            more = (of_model.get("eager", {}), folder) if part == "runtimes" else ()
            of_model[part] = globals()[part](name, args.seconds, *more)
            atomic_write_text(OUT, json.dumps(results, indent=1) + "\n")
            print(f"{name}: {part}", flush=True)
        results["models"] = {name: results["models"][name] for name in ASKED if name in results["models"]}
        atomic_write_text(OUT, json.dumps(results, indent=1) + "\n")
    atomic_write_text(OUT.with_suffix(".md"), page(results))
    atomic_write_text(FIGURE, figure(results))


if __name__ == "__main__":
    main()
