"""Every family exported and compared with its model, in each runtime, at two sizes and two batch sizes.

    python benchmarks/export.py                              writes docs/results/export.json, and export.md from it
    python benchmarks/export.py --models cvt_13 --to onnx    replaces one row
    python benchmarks/export.py --speed cvt_13               milliseconds in each runtime

A row is written whatever the outcome. Weights are drawn anew, so that no zero of the initialisation hides a term.
"""

import argparse
import importlib.metadata
import json
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import nn

import glocal
from glocal.bench import describe_environment
from glocal.errors import GlocalError
from glocal.export import VerificationError, builtin_images, export_model, load_exported
from glocal.export.verification import Reference
from glocal.files import atomic_write_text

RESULTS = Path(__file__).parents[1] / "docs/results"
MODELS = (
    "glocal_resnet50", "botnet50", "glocal_vit_small_patch16_224", "t2t_vit_14", "t2t_vit_t_14", "cvt_13", "cat_small",
    "conformer_small_patch16",
)  # fmt: skip
SIZE, OTHER = 224, 288
ENDS = {"onnx": "model.onnx", "openvino": "model.xml", "torch-export": "model.pt2", "aoti": "compiled.pt2"}
ROUNDS = 15
PACKAGES = ("torch", "onnx", "onnxruntime", "openvino")
HEAD = f"""# Export

Written by `benchmarks/export.py`. Each model, with random parameters, is exported with `--dynamic` (any batch size, any
height and width in multiples of 32) and compared with the model in torch on real images, at {SIZE} and {OTHER} pixels,
at batch sizes 1 and 5. Difference: the largest difference of a logit relative to the largest logit; a file is rejected
above 1e-4 (fp32).

"""


def drawn(name: str) -> nn.Module:
    """A model whose parameters and statistics are all random, of unit gain."""
    model: nn.Module = glocal.create_model(name)
    generator = torch.Generator().manual_seed(0)
    for key, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        if "running_var" in key:
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.ndim >= 2 and not any(part in key for part in ("pos_embed", "token", "position")):
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
        elif tensor.ndim == 1 and key.endswith("weight"):
            tensor.uniform_(0.15, 0.45, generator=generator)
        else:
            tensor.uniform_(-0.2, 0.2, generator=generator)
    return model.eval()


def row_of(name: str, to: str, half: bool) -> dict[str, Any]:
    """What came of one export: free batch and size, where the model lets them be."""
    row: dict[str, Any] = {"model": name, "to": to, "half": half}
    model = drawn(name)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            made = export_model(
                model,
                Path(folder) / ENDS[to],
                to=to,  # type: ignore[arg-type]
                image_size=SIZE,
                other_sizes=(OTHER,),
                dynamic=True,
                half=half,
            )
        except VerificationError as error:
            return {**row, "error": str(error), "checks": [check._asdict() for check in error.checks]}
        except GlocalError as error:
            return {**row, "error": str(error)}
        seconds = time.perf_counter() - began
        checks = {made.runtime: made.checks}
        if to == "onnx" and not half:  # the same file in the other runtime
            reference = Reference(model, builtin_images(5), made.description)
            other = load_exported(made.path, "openvino")
            checks["openvino"] = tuple(reference.check(other, (1, 5), ((SIZE, SIZE), (OTHER, OTHER))))
    return {
        **row,
        "free": made.description.dynamic,
        "checks": {runtime: [check._asdict() for check in of] for runtime, of in checks.items()},
        "tolerance": made.tolerance,
        "seconds": round(seconds, 1),
        "megabytes": round(made.num_bytes / 1e6, 1),
    }


def speed_of(name: str) -> dict[str, Any]:
    """Milliseconds for one image in each runtime: processor time on one thread, which other work disturbs least."""
    model = drawn(name)
    image = torch.randn(1, 3, SIZE, SIZE)
    with tempfile.TemporaryDirectory() as folder:
        runs: dict[str, Any] = {"torch": model}
        for free in (False, True):
            path = Path(folder) / f"{free}.onnx"
            export_model(model, path, to="onnx", image_size=SIZE, dynamic=free)
            for runtime in ("onnxruntime", "openvino"):
                runs[f"{runtime}{', free batch and size' if free else ''}"] = load_exported(path, runtime, threads=1)  # type: ignore[arg-type]
    times: dict[str, list[float]] = {key: [] for key in runs}
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for key, run in runs.items():
                began = time.process_time()
                run(image)
                times[key].append(1000 * (time.process_time() - began))
    return {"model": name, "ms": {key: round(min(of), 1) for key, of in times.items()}}


def page(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    machine = results["environment"]
    lines = [
        HEAD + "| model | file | runtime | dynamic | difference at 224 px | at 288 px | MB | export, s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    failed = []
    for row in results["rows"]:
        name, file = f"`{row['model']}`", f"{row['to']}{', half' if row['half'] else ''}"
        if "error" in row:
            lines.append(f"| {name} | {file} | - | - | **fails** | | | |")
            failed.append(f"* {name} to {file}: {row['error']}")
            continue
        for runtime, checks in row["checks"].items():
            worst = [max(c["relative"] for c in checks if c["image_size"][0] == side) for side in (SIZE, OTHER)]
            lines.append(
                f"| {name} | {file} | {runtime} | {', '.join(row['free'])} | {worst[0]:.1e} | {worst[1]:.1e} | "
                f"{row['megabytes']:,.1f} | {row['seconds']:,.0f} |"
            )
    lines += ["", "Failures:", "", *failed] if failed else ["", "No failures."]
    if results["speed"]:
        runtimes = list(results["speed"][0]["ms"])
        lines += [
            "",
            f"One image of {SIZE} pixels, fp32, one thread: milliseconds of CPU time, minimum of {ROUNDS} interleaved "
            "rounds. (Seconds above are wall time, on cores shared with other work.)",
            "",
            f"| model | {' | '.join(runtimes)} |",
            f"| --- |{' ---: |' * len(runtimes)}",
            *(
                f"| `{row['model']}` | {' | '.join(str(row['ms'][key]) for key in runtimes)} |"
                for row in results["speed"]
            ),
        ]
    versions = ", ".join(f"{key} {value}" for key, value in results["versions"].items())
    return "\n".join([*lines, "", f"{results['date']}, {machine['cpu']}, {machine['cores']} cores, {versions}.", ""])


def main() -> None:
    """Run what is asked for, and write each row when it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--to", nargs="*", default=("onnx", "openvino", "torch-export"), choices=list(ENDS))
    parser.add_argument("--half", action="store_true")
    parser.add_argument("--speed", nargs="*", default=(), help="models to time, in place of exports")
    arguments = parser.parse_args()
    path = RESULTS / "export.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": [], "speed": []}
    wanted = [] if arguments.speed else [(m, to, arguments.half) for m in arguments.models for to in arguments.to]
    for model, to, half in wanted:
        _replace(results["rows"], row_of(model, to, half), ("model", "to", "half"))
        _write(results, path)
    for model in arguments.speed:
        _replace(results["speed"], speed_of(model), ("model",))
        _write(results, path)


def _replace(rows: list[dict[str, Any]], row: dict[str, Any], keys: tuple[str, ...]) -> None:
    rows[:] = [old for old in rows if any(old[key] != row[key] for key in keys)] + [row]
    order = list(ENDS)
    rows.sort(key=lambda r: (r.get("half", False), order.index(r.get("to", order[0])), MODELS.index(r["model"])))


def _write(results: dict[str, Any], path: Path) -> None:
    results |= {
        "date": date.today().isoformat(),
        "environment": describe_environment(),
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
    }
    atomic_write_text(path, json.dumps(results, indent=1) + "\n")
    atomic_write_text(path.with_suffix(".md"), page(results))


if __name__ == "__main__":
    main()
