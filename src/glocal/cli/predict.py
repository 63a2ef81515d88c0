"""`glocal predict`: predictions of a trained model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import glocal.cli._options as opt
from glocal.cli import app
from glocal.cli._command_line import resume_command
from glocal.errors import GlocalError
from glocal.files import printable
from glocal.formatting import clock, percent

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from glocal.inference import ClassPrediction, PredictProgress

EPILOG = f"""\
\b
Examples:
  glocal predict run photo.jpg                         a table on the terminal
  glocal predict run photos --out photos.jsonl         every image in the folder and its subfolders
  glocal predict run 'shards/{{000..099}}.tar' --out shards.csv --top-k 1
  glocal predict run photos --out photos.jsonl --resume     continue after a stop
  glocal predict run photos --out photos.jsonl --engine ray
  glocal predict model.onnx photos --out photos.jsonl       an exported model

{opt.PREDICT_CODES}"""

Out = Annotated[
    Path | None, typer.Option(metavar="FILE", help="FILE.jsonl or FILE.csv; default: a table on the terminal.")
]
TopK = Annotated[int, typer.Option(help="Number of most probable classes per image.")]
EngineOption = Annotated[
    str, typer.Option(help="local, or ray: a cluster, with --workers actors (pip install glocal[ray]).")
]


@app.command(epilog=EPILOG)
def predict(
    model: opt.RunFileOrExport,
    inputs: opt.Inputs,
    out: Out = None,
    top_k: TopK = 5,
    resume: opt.ResumeJob = False,
    engine: EngineOption = "local",
    batch_size: opt.BatchSize = 64,
    workers: opt.Workers = None,
    device: opt.Device = "auto",
    runtime: opt.Runtime = None,
    trust: opt.Trust = False,
) -> None:
    """Classify images with a saved or exported model: the most probable classes of each.

    An unreadable image gets a line with the reason; the job continues.
    """
    if resume and out is None:
        raise GlocalError("--resume needs --out: the file to resume")
    from rich.markup import escape

    from glocal.cli._display import table_console, text_console
    from glocal.inference import check_output, device_for, list_inputs, open_model, predict_files

    if out is not None:
        check_output(out)
    listed = list_inputs(inputs)
    saved = open_model(model, runtime, trust=trust)  # type: ignore[arg-type]
    device = device_for(saved, device)
    console = text_console(stderr=True)
    shown: list[ClassPrediction] = []
    try:
        with _progress_bar(console, len(listed)) as update:
            summary = predict_files(
                saved,
                listed,
                out,
                top_k=top_k,
                batch_size=batch_size,
                workers=workers,
                device=device,
                engine=engine,  # type: ignore[arg-type]
                resume=resume,
                progress=update,
                take=shown.append if out is None else lambda _: None,
            )
    except KeyboardInterrupt:
        hint = "" if out is None else f" To resume:\n  {escape(printable(resume_command()))}"
        console.print(f"\nStopped.{hint}")
        raise typer.Exit(130) from None
    if out is None:
        table_console().print(_table(shown))
    before = f", {summary.before:,} of them before" if summary.before else ""
    where = f"; results in {escape(printable(out))}" if out is not None else ""
    console.print(f"{summary.total:,} images{before}{_bad(summary.failed)}{where}")
    if summary.failed == summary.total:
        raise typer.Exit(1)


@contextmanager
def _progress_bar(console: "Console", total: int) -> "Iterator[Callable[[PredictProgress], None]]":
    from rich.progress import BarColumn, MofNCompleteColumn

    from glocal.cli._display import STATE, progress_bars

    with progress_bars(console, BarColumn(), MofNCompleteColumn(), STATE) as bars:
        task = bars.add_task("Predicting", total=total, state="")

        def update(progress: "PredictProgress") -> None:
            left = (progress.total - progress.done) / progress.images_per_s
            state = f"{progress.images_per_s:,.0f} images/s, {clock(left)} left{_bad(progress.failed)}"
            bars.update(task, completed=progress.done, state=state)

        yield update


def _bad(failed: int) -> str:
    return f", {failed:,} unreadable" if failed else ""


def _table(predictions: "list[ClassPrediction]") -> "Table":
    from rich.markup import escape

    from glocal.cli._display import simple_table

    table = simple_table("image", "classes")
    for prediction in predictions:
        classes = ", ".join(f"{printable(name)} {percent(share)}" for name, share in prediction.top)
        error = f"[red]{escape(printable(prediction.error or ''))}[/]"
        table.add_row(escape(printable(prediction.path)), escape(classes) if prediction.top else error)
    return table
