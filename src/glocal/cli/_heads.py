"""Evaluation and prediction of detectors and segmenters from the command line."""

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from glocal.cli._training import COMMANDS
from glocal.errors import GlocalError, check_choice
from glocal.files import atomic_write_text, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from glocal.models.io import TaskName


def summary(results: Mapping[str, Any]) -> str:
    """The scores of a detector or segmenter in a few words."""
    if "miou" in results:
        return f"mIoU {100 * results['miou']:.1f} %, pixel accuracy {100 * results['pixel_accuracy']:.1f} %"
    text = f"mAP {100 * results['map']:.1f} % (at 0.5: {100 * results['map50']:.1f} %)"
    if "mask" in results:
        mask = results["mask"]
        text += f", of masks {100 * mask['map']:.1f} % (at 0.5: {100 * mask['map50']:.1f} %)"
    return text


def check_file(out: Path | None) -> None:
    """Refuse a file that cannot be written before anything is measured."""
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise GlocalError(f"out: expected a file in a folder that is there, got {printable(out)}")


def write_json(out: Path, results: Mapping[str, Any]) -> None:
    """Results into a file."""
    try:
        atomic_write_text(out, json.dumps(results, indent=1, allow_nan=False))
    except OSError as error:
        raise GlocalError(f"out: cannot write {printable(out)} ({error.strerror})") from error


def evaluate(
    task: "TaskName",
    model: Path,
    data: str,
    *,
    part: str,
    out: Path | None,
    on_error: str,
    split_seed: int,
    follow_links: bool,
    device: str,
    predictions: Path | None = None,
) -> None:
    """Load a model and a part of a data set, evaluate, show, write."""
    check_choice("part", part, ("val", "train"))
    check_choice("on-error", on_error, ("stop", "skip"))
    check_file(out)
    check_file(predictions)
    import glocal
    from glocal.data import load_detection, load_segmentation
    from glocal.models.io import load_model
    from glocal.tasks import evaluate
    from glocal.training import resolve_device

    saved = load_model(model, task)
    device = resolve_device(device)
    load: Any = load_detection if task == "detection" else load_segmentation
    source: Any = load(data, on_error=on_error, split_seed=split_seed, follow_links=follow_links)
    taken: list[Any] = []
    _, bars, follow = progress_bar("Evaluating")
    with bars:
        found = evaluate(
            saved,
            source.val if part == "val" else source.train,
            device=device,
            on_error=on_error,  # type: ignore[arg-type]
            progress=follow,
            take=taken.extend if predictions is not None else lambda _: None,
        )
    results = {
        "schema": f"glocal.{COMMANDS[task]}/1",
        "glocal": glocal.__version__,
        "model": {"name": saved.name, "task": task, "digest": saved.identity},
        "data": {
            "name": source.name,
            "part": part,
            "split": source.split,
            "fingerprint": source.fingerprint,
            "warnings": list(source.warnings),
        },
        **found,
    }
    if predictions is not None:
        _write_predictions(predictions, taken, saved.classes, source)
    if out is not None:
        write_json(out, results)
    _show(results)


def _write_predictions(out: Path, outcomes: Sequence[Any], classes: Sequence[str], source: Any) -> None:
    """COCO's JSON of results, with the ids of the data."""
    from glocal.data.predictions import write_entries
    from glocal.tasks.detection import coco_entries

    ids = dict(zip(source.classes, source.category_ids, strict=True))
    ids = {label: ids[name] for label, name in enumerate(classes) if name in ids}
    try:
        write_entries(out, [entry for one in outcomes for entry in coco_entries(one, ids)])
    except OSError as error:
        raise GlocalError(f"predictions: cannot write {printable(out)} ({error.strerror})") from error


def _show(results: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape

    shown, data = Console(width=None if sys.stdout.isatty() else 240, highlight=False), results["data"]
    shown.print(
        f"[bold]{escape(results['model']['name'])}[/] on {results['images']:,} images of "
        f"{escape(printable(data['name']))} ({data['part']}): {summary(results)}"
    )
    for warning in data["warnings"]:
        shown.print(f"[yellow]Note:[/] {escape(printable(warning))}")
    shown.print(_per_class(results))
    if results["skipped"]:
        shown.print(f"[yellow]{len(results['skipped'])} images could not be read.[/]")


def _per_class(results: Mapping[str, Any]) -> "Table":
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("class", no_wrap=True)
    columns = [("IoU %" if "miou" in results else "AP %", results["per_class"])]
    if "mask" in results:
        columns.append(("mask AP %", results["mask"]["per_class"]))
    for name, _ in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for row in zip(results["classes"], *(values for _, values in columns), strict=True):
        if any(value is not None for value in row[1:]):
            cells = ["" if value is None else f"{100 * value:.1f}" for value in row[1:]]
            table.add_row(escape(printable(row[0])), *cells)
    return table


def progress_bar(title: str) -> "tuple[Console, Any, Callable[[int, int], None]]":
    """Console, bars to enter, and what to tell of how many are done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = bars.add_task(title, total=None)
    return console, bars, lambda done, total: bars.update(task, completed=done, total=total)


def predict(
    task: "TaskName",
    model: Path,
    inputs: Sequence[str],
    out: Path,
    *,
    draw: bool,
    threshold: float,
    draw_threshold: float,
    resume: bool,
    workers: int | None,
    device: str,
) -> None:
    """Predict images into a folder."""
    from rich.markup import escape

    from glocal.inference import list_inputs, predict_images
    from glocal.models.io import load_model
    from glocal.run_dir import check_writable
    from glocal.training import resolve_device

    check_writable(out)
    listed = list_inputs(inputs)
    saved = load_model(model, task)
    console, bars, follow = progress_bar("Predicting")
    try:
        with bars:
            done = predict_images(
                saved,
                listed,
                out,
                draw=draw,
                threshold=threshold,
                draw_threshold=draw_threshold,
                device=resolve_device(device),
                workers=workers,
                resume=resume,
                progress=lambda done: follow(done.done, done.total),
            )
    except KeyboardInterrupt:
        again = shlex.join(["glocal", *(a for a in sys.argv[1:] if a != "--resume"), "--resume"])
        console.print(f"\nStopped. To go on:\n  {escape(printable(again))}")
        raise typer.Exit(130) from None
    before = f", {done.before:,} of them before" if done.before else ""
    bad = f", {done.failed:,} unreadable" if done.failed else ""
    console.print(f"{done.total:,} images{before}{bad}; results in {escape(printable(out))}")
    if done.failed == done.total:
        raise typer.Exit(1)
