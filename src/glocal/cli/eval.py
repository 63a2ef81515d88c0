"""`glocal eval`: measure a trained model on labelled images."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from glocal.cli import app
from glocal.errors import GlocalError
from glocal.files import atomic_write_text, printable

EPILOG = """\
\b
Examples:
  glocal eval run photos                        on the images that training held out
  glocal eval run new_photos --part all         on every image of CLASS folders
  glocal eval compared/runs/vit_micro-f1-s0 fashion-mini --out results.json

\b
Exit codes:
  0 finished
  2 the call is wrong, or the model or the images cannot be used
"""
SHOWN = 5
"""Worst classes, and pairs of classes taken for each other, on the terminal; the file has all."""


@app.command(name="eval", epilog=EPILOG)
def evaluate(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|FILE", help="Folder of a run, its model.safetensors, or a file of `glocal export`."
        ),
    ],
    data: Annotated[str, typer.Argument(metavar="DATA", help="Folder of images, shards, or fashion-mini.")],
    part: Annotated[str, typer.Option(help="val, train, or all: every image of CLASS folders.")] = "val",
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write the results as JSON.")] = None,
    on_error: Annotated[str, typer.Option(help="At images that cannot be read: stop, or skip and list them.")] = "stop",
    split_seed: Annotated[int, typer.Option(help="Of the part held out, as it was in training.")] = 0,
    follow_links: Annotated[bool, typer.Option("--follow-links", help="Follow links in the folder.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that are run at once.")] = 64,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that read images; default: one a processor.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    runtime: Annotated[
        str | None, typer.Option(help="onnxruntime, openvino or torch; default: as FILE ends, .onnx, .xml or other.")
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Read a .pt2, from which code can run: you know who made it.")
    ] = False,
) -> None:
    """Measure a model that glocal or timm has saved, or exported: top-1, top-5, calibration, each class, mistakes.

    Classes of DATA are found among the model's by their names.
    """
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise GlocalError(f"out: expected a file in a folder that is there, got {printable(out)}")
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    import glocal
    from glocal.inference import device_for, evaluation_sets, open_model
    from glocal.inference import evaluate as measure

    saved = open_model(model, runtime, trust=trust)  # type: ignore[arg-type]
    device = device_for(saved, device)
    sets = evaluation_sets(
        data,
        part,  # type: ignore[arg-type]
        on_error=on_error,  # type: ignore[arg-type]
        split_seed=split_seed,
        follow_links=follow_links,
        workers=workers or None,
    )
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("Measuring", total=None)
        results = measure(
            saved,
            sets,
            on_error=on_error,  # type: ignore[arg-type]
            batch_size=batch_size,
            workers=workers,
            device=device,
            progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    results = {"glocal": glocal.__version__, **results}
    if out is not None:
        try:
            atomic_write_text(out, json.dumps(results, indent=1, allow_nan=False))
        except OSError as error:
            raise GlocalError(f"out: cannot write {printable(out)} ({error.strerror})") from error
    _show(Console(width=None if sys.stdout.isatty() else 240, highlight=False), results)


def _show(console: Any, results: Mapping[str, Any]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    def shown(name: str) -> str:
        return escape(printable(name))

    model, data = results["model"], results["data"]
    console.print(
        f"[bold]{shown(model['name'])}[/] on {results['images']:,} images of {shown(data['name'])} "
        f"({data['part']}: {shown(data['split'])})"
    )
    for warning in data["warnings"]:
        console.print(f"[yellow]Note:[/] {shown(warning)}")
    scores = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    names = ("top-1 %", "top-5 %", "calibration error %", "NLL, nats")
    values = [100 * results["top1"], results["top5"] and 100 * results["top5"], 100 * results["ece"], results["nll"]]
    for name in names:
        scores.add_column(name, justify="right")
    scores.add_row(*("-" if value is None else f"{value:.2f}" for value in values))
    console.print(scores)
    by_class = {entry["class"]: entry for entry in results["per_class"]}
    worst = Table("worst classes", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("top-1 %", "images"):
        worst.add_column(name, justify="right")
    for name in results["worst_classes"][:SHOWN]:
        worst.add_row(shown(name), f"{100 * by_class[name]['top1']:.1f}", f"{by_class[name]['images']:,}")
    console.print(worst)
    if results["confusions"]:
        pairs = Table("is", "taken for", box=box.SIMPLE_HEAD, pad_edge=False)
        pairs.add_column("images", justify="right")
        for pair in results["confusions"][:SHOWN]:
            pairs.add_row(shown(pair["true"]), shown(pair["predicted"]), f"{pair['count']:,}")
        console.print(pairs)
    if missing := results["missing_classes"]:
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        console.print(f"Classes of the model without an image: {', '.join(map(shown, missing[:10]))}{more}")
    if skipped := results["skipped"]:
        console.print(f"[yellow]Images left out, as they cannot be read: {len(skipped)}[/]")
        for bad in skipped[:10]:
            console.print(f"  {shown(bad['path'])}: {shown(bad['reason'])}")
