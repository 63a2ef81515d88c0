"""`glocal predict`: what a trained model says of images."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glocal.cli import app
from glocal.errors import GlocalError
from glocal.files import printable
from glocal.formatting import clock

if TYPE_CHECKING:
    from rich.table import Table

    from glocal.inference import Prediction

EPILOG = """\
\b
Examples:
  glocal predict run photo.jpg                         a table on the terminal
  glocal predict run photos --out photos.jsonl         every file in the folder, and in those inside it
  glocal predict run 'shards/{000..099}.tar' --out shards.csv --top-k 1
  glocal predict run photos --out photos.jsonl --resume     go on after a stop
  glocal predict run photos --out photos.jsonl --engine ray
  glocal predict model.onnx photos --out photos.jsonl       a file of glocal export

\b
Exit codes:
  0 finished; images that cannot be read have a line with the reason
  1 no image could be read
  2 the call is wrong, or the model cannot be used
  130 stopped by Ctrl-C: --resume goes on
"""


@app.command(epilog=EPILOG)
def predict(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|FILE", help="Folder of a run, its model.safetensors, or a file of `glocal export`."
        ),
    ],
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Images, folders of them, or .tar shards.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="FILE.jsonl or FILE.csv; default: a table on the terminal.")
    ] = None,
    top_k: Annotated[int, typer.Option(help="Most probable classes of each image.")] = 5,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with --out where it stopped.")] = False,
    engine: Annotated[str, typer.Option(help="local, or ray for a cluster (pip install glocal[ray]).")] = "local",
    batch_size: Annotated[int, typer.Option(help="Images that are run at once.")] = 64,
    workers: Annotated[
        int | None, typer.Option(help="Processes that read images; default: one a processor. With ray: actors.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    runtime: Annotated[
        str | None, typer.Option(help="onnxruntime, openvino or torch; default: as FILE ends, .onnx, .xml or other.")
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Read a .pt2, from which code can run: you know who made it.")
    ] = False,
) -> None:
    """Give the most probable classes of images, by a model that glocal or timm has saved, or exported.

    An image that cannot be read has a line that says why; the others go on.
    """
    if resume and out is None:
        raise GlocalError("--resume needs --out: the file to go on with")
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bars

    from glocal.inference import Progress, check_output, device_for, list_inputs, open_model, predict_files

    if out is not None:
        check_output(out)
    listed = list_inputs(inputs)
    saved = open_model(model, runtime, trust=trust)  # type: ignore[arg-type]
    device = device_for(saved, device)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    shown: list[Prediction] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[state]}"))
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("Predicting", total=len(listed), state="")

        def follow(progress: Progress) -> None:
            left = (progress.total - progress.done) / progress.images_per_s
            state = f"{progress.images_per_s:,.0f} images/s, {clock(left)} left"
            bars.update(task, completed=progress.done, state=state + _bad(progress.failed))

        try:
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
                progress=follow,
                take=shown.append if out is None else lambda _: None,
            )
        except KeyboardInterrupt:
            bars.stop()
            again = shlex.join(["glocal", *(a for a in sys.argv[1:] if a != "--resume"), "--resume"])
            console.print("\nStopped." + (f" To go on:\n  {escape(printable(again))}" if out is not None else ""))
            raise typer.Exit(130) from None
    if out is None:
        Console(width=None if sys.stdout.isatty() else 240, highlight=False).print(_table(shown))
    before = f", {summary.before:,} of them before" if summary.before else ""
    where = f"; results in {escape(printable(out))}" if out is not None else ""
    console.print(f"{summary.total:,} images{before}{_bad(summary.failed)}{where}")
    if summary.failed == summary.total:
        raise typer.Exit(1)


def _bad(failed: int) -> str:
    return f", {failed:,} that cannot be read" if failed else ""


def _table(predictions: "list[Prediction]") -> "Table":
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table("image", "classes", box=box.SIMPLE_HEAD, pad_edge=False)
    for prediction in predictions:
        classes = ", ".join(f"{printable(name)} {100 * share:.1f} %" for name, share in prediction.top)
        error = f"[red]{escape(printable(prediction.error or ''))}[/]"
        table.add_row(escape(printable(prediction.path)), escape(classes) if prediction.top else error)
    return table
