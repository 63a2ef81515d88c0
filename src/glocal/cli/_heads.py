"""Evaluation and prediction of detectors and segmenters from the command line."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from glocal.cli._command_line import check_file, resume_command, write_json
from glocal.cli._training import COMMANDS, load
from glocal.errors import check_choice
from glocal.files import printable

if TYPE_CHECKING:
    from rich.table import Table

    from glocal.models.io import TaskName


def evaluate(
    task: "TaskName",
    model: Path,
    data: str,
    *,
    part: str,
    out: Path | None,
    on_error: str,
    device: str,
    predictions: Path | None = None,
    **options: Any,
) -> None:
    """Evaluate a model on a part of a data set, which is loaded with the other options."""
    check_choice("part", part, ("val", "train"))
    check_choice("on-error", on_error, ("stop", "skip"))
    check_file(out)
    check_file(predictions)
    import glocal
    from glocal.cli._display import progress_bar
    from glocal.models.io import load_model
    from glocal.tasks import evaluate
    from glocal.tasks.detection import write_predictions
    from glocal.training import resolve_device

    saved = load_model(model, task)
    device = resolve_device(device)
    source = load(task, data, on_error=on_error, **options)
    taken: list[Any] = []
    with progress_bar("Evaluating") as update:
        found = evaluate(
            saved,
            source.val if part == "val" else source.train,
            name=source.name,
            device=device,
            on_error=on_error,
            progress=update,
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
        write_predictions(predictions, taken, saved.classes, source)
    if out is not None:
        write_json(out, results)
    _show(results)


def _show(results: Mapping[str, Any]) -> None:
    from rich.markup import escape

    from glocal.cli._display import summary, table_console

    shown, data = table_console(), results["data"]
    shown.print(
        f"[bold]{escape(results['model']['name'])}[/] on {results['images']:,} images of "
        f"{escape(printable(data['name']))} ({data['part']}): {summary(results)}"
    )
    for warning in data["warnings"]:
        shown.print(f"[yellow]Note:[/] {escape(printable(warning))}")
    shown.print(_per_class(results))
    if results["skipped"]:
        shown.print(f"[yellow]{len(results['skipped'])} unreadable images skipped.[/]")


def _per_class(results: Mapping[str, Any]) -> "Table":
    from rich.markup import escape
    from rich.table import Column

    from glocal.cli._display import simple_table

    columns = {"IoU %" if "miou" in results else "AP %": results["per_class"]}
    if "mask" in results:
        columns["mask AP %"] = results["mask"]["per_class"]
    table = simple_table(Column("class", no_wrap=True), numbers=columns)
    for row in zip(results["classes"], *columns.values(), strict=True):
        if any(value is not None for value in row[1:]):
            cells = ["" if value is None else f"{100 * value:.1f}" for value in row[1:]]
            table.add_row(escape(printable(row[0])), *cells)
    return table


def predict(task: "TaskName", model: Path, inputs: Sequence[str], out: Path, *, device: str, **options: Any) -> None:
    """Predict images into a folder, with the options of `glocal.inference.predict_images`."""
    from rich.markup import escape

    from glocal.cli._display import progress_bar, text_console
    from glocal.inference import list_inputs, predict_images
    from glocal.models.io import load_model
    from glocal.run_dir import check_writable
    from glocal.training import resolve_device

    check_writable(out)
    listed = list_inputs(inputs)
    saved = load_model(model, task)
    device = resolve_device(device)
    console = text_console(stderr=True)
    try:
        with progress_bar("Predicting") as update:
            done = predict_images(
                saved,
                listed,
                out,
                device=device,
                progress=lambda progress: update(progress.done, progress.total),
                **options,
            )
    except KeyboardInterrupt:
        console.print(f"\nStopped. To resume:\n  {escape(printable(resume_command()))}")
        raise typer.Exit(130) from None
    before = f", {done.before:,} of them before" if done.before else ""
    bad = f", {done.failed:,} unreadable" if done.failed else ""
    console.print(f"{done.total:,} images{before}{bad}; results in {escape(printable(out))}")
    if done.failed == done.total:
        raise typer.Exit(1)
