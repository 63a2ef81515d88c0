"""`glocal compare`: train and measure models on images, and say which to take."""

import json
import math
import shlex
import sys
import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from glocal.cli import app
from glocal.errors import GlocalError
from glocal.files import atomic_write_text, printable

if TYPE_CHECKING:
    from glocal.comparison import Run, Settings
    from glocal.data import DataSource
    from glocal.training import CurvePoint
    from glocal.training import Progress as TrainingProgress

EPILOG = """\
\b
Examples:
  glocal compare fashion-mini
  glocal compare photos --models resnet50,botnet50 --budget 30ep --image-size 128
  glocal compare photos --budget 600s --fraction 1.0,0.3,0.1 --out study
  glocal compare photos --mode finetune --models resnet50 --weights resnet50=FILE
  glocal compare photos --out study --resume

\b
Exit codes:
  0 all runs finished
  1 a run failed: the report says why, --resume tries again
  2 the call is wrong
  130 stopped by Ctrl-C: --resume goes on
"""


@app.command(epilog=EPILOG)
def compare(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Folder of images, or a built-in set: fashion-mini.")],
    models: Annotated[
        str, typer.Option(metavar="A,B,C", help="Names of glocal's or timm's models.")
    ] = "resnet_micro,botnet_micro,vit_micro",
    budget: Annotated[
        str, typer.Option(help="Training of each run: 5ep (epochs), 90s (seconds) or 2e14flop (3 x forward x 2 a MAC).")
    ] = "5ep",
    seeds: Annotated[int, typer.Option(help="Runs of each model: 3 means seeds 0, 1 and 2.")] = 3,
    mode: Annotated[
        str, typer.Option(help="scratch; finetune from weights; or probe: a linear head on a frozen backbone.")
    ] = "scratch",
    weights: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="Weights to finetune or probe (safetensors, or a .pth of tensors)."),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side in pixels; default: the largest default of the models.")
    ] = None,
    fraction: Annotated[str, typer.Option(help="Shares of the training images, each a run: 1.0,0.3,0.1.")] = "1.0",
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML that replaces settings of the default recipe.")
    ] = None,
    on_error: Annotated[str, typer.Option(help="At images that cannot be read: stop, or skip and list them.")] = "stop",
    follow_links: Annotated[bool, typer.Option("--follow-links", help="Follow links in the folder.")] = False,
    split_seed: Annotated[int, typer.Option(help="Picks the test images of a folder that has no val folder.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder for results; default: runs/compare-DATA-TIME.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with --out: run only what is missing.")] = False,
) -> None:
    """Train and measure models on your images under one recipe and budget, and say which to take.

    Writes results.json, results.csv, report.html and the trained models. Stop at any time: --resume goes on.
    """
    from glocal.comparison import compare as run_comparison
    from glocal.comparison import make_settings
    from glocal.data import load_data
    from glocal.training import load_recipe

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if resume and out is None:
        raise GlocalError("--resume needs --out: the folder of the comparison to go on with")
    settings = make_settings(
        [name.strip() for name in models.split(",") if name.strip()],
        budget=budget,
        seeds=seeds,
        mode=mode,  # type: ignore[arg-type]
        weights=dict(_parse_weights(item) for item in weights or ()),
        image_size=image_size,
        fractions=[_parse_fraction(item) for item in fraction.split(",")],
        recipe=load_recipe(recipe, mode) if recipe else None,  # type: ignore[arg-type]
        device=device,
        on_error=on_error,  # type: ignore[arg-type]
    )
    out = out or Path("runs") / f"compare-{Path(data).name or 'data'}-{datetime.now():%Y%m%d-%H%M%S}"
    _check_writable(out)
    source = load_data(data, on_error=settings.on_error, split_seed=split_seed, follow_links=follow_links)
    _introduce(console, source, settings, out)
    watcher = _Watcher(console, out, source)
    try:
        results = run_comparison(
            source,
            settings,
            out,
            resume=resume,
            side_by_side=True,
            command=shlex.join(["glocal", *sys.argv[1:]]),
            observer=watcher,
        )
    except KeyboardInterrupt:
        watcher.close()
        total = len(list(settings.runs()))
        again = shlex.join([*(a for a in sys.argv[1:] if a != "--resume"), "--resume"])
        hint = again if "--out" in again else f"{again} --out {shlex.quote(str(out))}"
        console.print(
            f"\nStopped. {watcher.finished} of {total} runs are finished and kept; to go on:\n  glocal {escape(hint)}"
        )
        raise typer.Exit(130) from None
    except OSError as error:
        raise GlocalError(f"out: {error}; finished runs are kept and --resume goes on") from error
    finally:
        watcher.close()
    _conclude(Console(highlight=False, soft_wrap=True), results, out)
    if any(run["status"] == "failed" for run in results["runs"]):
        raise typer.Exit(1)


def _parse_weights(item: str) -> tuple[str, Path]:
    name, separator, path = item.partition("=")
    if not (name and separator and path):
        raise GlocalError(f"weights: expected NAME=FILE, such as resnet50=resnet50.safetensors; got {item!r}")
    return name, Path(path)


def _parse_fraction(item: str) -> float:
    try:
        return float(item)
    except ValueError:
        raise GlocalError(f"fraction: expected shares such as 1.0,0.3,0.1; got {item!r}") from None


def _check_writable(out: Path) -> None:
    """Refuse a folder that cannot be written before images are read, and leave no trace of the try."""
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise GlocalError(f"out: cannot write to {printable(out)} ({error.strerror}); choose another --out") from error
    finally:
        for folder in missing:
            if folder.exists():
                folder.rmdir()


def _introduce(console: Console, source: "DataSource", settings: "Settings", out: Path) -> None:
    console.print(
        f"[bold]{escape(printable(source.name))}[/]: {len(source.classes)} classes, {len(source.train):,} training and "
        f"{len(source.val):,} test images ({escape(source.split)})"
    )
    if source.skipped:
        console.print(f"[yellow]{len(source.skipped)} images skipped; the report lists them.[/]")
    for warning in source.warnings:
        console.print(f"[yellow]{escape(printable(warning))}[/]")
    number = len(list(settings.runs()))
    console.print(
        f"{number} runs of {settings.budget} each ({settings.mode}, {settings.image_size} px, {settings.device}): "
        f"{', '.join(settings.models)}; results in {escape(str(out))}"
    )


class _Watcher:
    """Shows a bar for each run on a terminal, a line for each evaluation elsewhere; writes results as they come."""

    def __init__(self, console: Console, out: Path, source: "DataSource") -> None:
        self.console, self.out, self.source = console, out, source
        self.finished = 0
        self.all: TaskID | None = None
        self.tasks: dict[str, TaskID] = {}
        self.shown: dict[str, CurvePoint] = {}
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            TextColumn("{task.fields[state]}"),
            console=console,
            disable=not console.is_terminal,
        )

    def say(self, text: str) -> None:
        self.console.print(escape(printable(text)))

    def start(self, run: "Run", number: int, total: int) -> None:
        self.bars.start()
        if self.all is None:
            self.all = self.bars.add_task(f"all {total} runs", total=total, completed=number - 1, state="")
        self.tasks[run.id] = self.bars.add_task(run.id, total=1.0, state="")

    def update(self, run: "Run", progress: "TrainingProgress") -> None:
        point = progress.point
        top1 = f"{100 * point.val_top1:.1f} %" if point else "..."
        state = f"loss {progress.loss:.2f}, top-1 {top1}, {progress.images_per_s:,.0f} images/s"
        if self.console.is_terminal:
            left = _clock(progress.seconds_left)
            self.bars.update(self.tasks[run.id], completed=progress.done, state=f"{state}, {left} left")
        elif point and point != self.shown.get(run.id):
            self.shown[run.id] = point
            self.console.print(f"{run.id}: epoch {point.epoch:.1f}, {state}")

    def finish(self, run: "Run", entry: Mapping[str, Any]) -> None:
        self.bars.remove_task(self.tasks.pop(run.id))
        if self.all is not None:
            self.bars.advance(self.all)
        if entry["status"] == "failed":
            self.console.print(f"[red]{run.id} failed:[/] {escape(printable(entry['error']))}")
        else:
            took = _clock(entry["budget"]["seconds_to_budget"])
            self.console.print(f"{run.id}: top-1 {100 * entry['top1']:.1f} % after {took}")

    def publish(self, results: dict[str, Any]) -> None:
        from glocal.comparison import pictures_of_mistakes
        from glocal.report import write_csv, write_report

        self.finished = sum(run["status"] == "ok" for run in results["runs"])
        atomic_write_text(self.out / "results.json", json.dumps(results, indent=1, allow_nan=False))
        write_csv(results, self.out / "results.csv")
        write_report(results, self.out, pictures=pictures_of_mistakes(results, self.source))

    def close(self) -> None:
        self.bars.stop()


def _clock(seconds: float) -> str:
    if math.isnan(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"


def _conclude(console: Console, results: dict[str, Any], out: Path) -> None:
    for fraction in results["settings"]["fractions"]:
        rows = [row for row in results["summary"] if row["fraction"] == fraction]
        if rows:
            console.print(_leaderboard(rows, fraction, len(results["settings"]["fractions"]) > 1))
    console.print(f"[bold]{escape(results['verdict']['sentence'])}[/]")
    for caveat in results["verdict"]["caveats"]:
        console.print(f"[yellow]Note:[/] {escape(printable(caveat))}")
    console.print(f"Report: {escape(str(out / 'report.html'))}")


def _leaderboard(rows: list[dict[str, Any]], fraction: float, several: bool) -> Table:
    title = f"trained on {100 * fraction:g} % of the training images" if several else None
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("model", no_wrap=True)
    for name in ("top-1 %", "95 %", "behind", "M MACs", "ms/image", "train s"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        low, high = row["top1_ci"]
        behind = f"{-100 * row['difference_to_best']:.1f}{' (tie)' if row['tied_with_best'] else ''}"
        table.add_row(
            f"[bold]{row['model']}[/]" if row["tied_with_best"] else row["model"],
            f"{100 * row['top1_mean']:.1f}",
            f"{100 * low:.1f} - {100 * high:.1f}",
            "best" if row is rows[0] else behind,
            f"{row['macs'] / 1e6:,.1f}",
            f"{row['latency_ms_b1']:.2f}",
            f"{row['seconds_to_budget']:.0f}",
        )
    return table
