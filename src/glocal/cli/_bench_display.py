"""Output of `glocal bench`: progress bar, tables, JSON, CSV, plot."""

import csv
import io
import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from glocal.files import atomic_write_text, printable
from glocal.schema import BenchOptions, BenchResults, BenchRow

CSV_COLUMNS = (
    "model", "source", "runtime", "mode", "batch_size", "image_size", "precision", "ms", "ms_low", "ms_high",
    "images_per_s", "rounds", "reference", "ratio", "ratio_low", "ratio_high", "share_of_limit", "memory_mib", "params",
    "macs", "difference", "same_function", "best_peer", "note", "error",
)  # fmt: skip
PRECISIONS = {"32": "float32", "bf16": "bfloat16 autocast", "fp16": "float16 autocast"}


class Watcher:
    """Shows a bar on a terminal, a line for each configuration elsewhere; writes results as they come."""

    def __init__(self, console: Console, out: Path | None) -> None:
        self.console, self.out = console, out
        self.published = 0
        self.task: TaskID | None = None
        self.bar = Progress(
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def update(self, what: str, done: float) -> None:
        if self.task is None:
            self.bar.start()
            self.task = self.bar.add_task("", total=1.0)
        self.bar.update(self.task, completed=done, description=escape(printable(what)))

    def publish(self, results: BenchResults) -> None:
        if not self.console.is_terminal and results["rows"]:
            self.console.print(f"measured: {_configuration(results['rows'][-1])}")
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            atomic_write_text(self.out / "results.json", json.dumps(results, indent=1, allow_nan=False))
            atomic_write_text(self.out / "results.csv", _csv(results["rows"]))
            atomic_write_text(self.out / "bench.svg", plot(results["rows"]))
            self.published += 1

    def close(self) -> None:
        self.bar.stop()


def conclude(console: Console, results: BenchResults, out: Path | None) -> None:
    machine, limits = results["environment"], results["limits"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "torchvision", "timm"))
    console.print(
        f"[bold]{escape(machine['gpu'] or machine['cpu'])}[/], {machine['threads']} threads; python "
        f"{machine['python']}, {versions}"
    )
    console.print(
        f"Its limit, measured: {limits['gflops']:,.0f} GFLOP/s ({limits['product']}), "
        f"{limits['gb_per_s']:,.1f} GB/s of memory"
    )
    for _, rows in groupby(results["rows"], _configuration):
        console.print(_table(list(rows), results["settings"]))
    for row in results["rows"]:
        low, high = row["ratio_low"], row["ratio_high"]
        if row["best_peer"] and low is not None and high is not None:
            console.print(
                f"{row['model']}, {_configuration(row)}: the best peer, {row['source']} ({row['runtime']}), takes "
                f"[bold]{_ratio(row)}[/] times as long as {escape(row['reference'])}"
                + ("; no significant difference" if low <= 1 <= high else "")
            )
    for note in results["notes"]:
        console.print(f"[yellow]Note:[/] {escape(note)}")
    if out is not None:
        console.print(f"Results: {escape(printable(out))}/results.json, results.csv, bench.svg")


def _configuration(row: BenchRow) -> str:
    size = f"batch {row['batch_size']}, {row['image_size']} px"
    return f"{row['mode']}, {size}, {PRECISIONS[row['precision']]}"


def _table(rows: Sequence[BenchRow], settings: BenchOptions) -> Table:
    references = {row["reference"] for row in rows if row["reference"]}
    first = next((row for row in rows if row["name"] in references), None)
    header = f"time / {first['model']}" if first and len(references) == 1 else "time / first of the model"
    columns = {
        "ms": ("ms", lambda row: f"{row['ms']:.2f}"),
        "quartiles": ("quartiles", lambda row: f"{row['ms_low']:.2f}–{row['ms_high']:.2f}"),
        "images": ("images/s", lambda row: f"{row['images_per_s']:,.1f}"),
        "ratio": (f"{header} (90 %)", _ratio),
        "share": ("of limit", lambda row: f"{100 * row['share_of_limit']:.0f} %"),
        "memory": ("MiB", lambda row: "-" if row["memory_mib"] is None else f"{row['memory_mib']:,.0f}"),
        "difference": ("difference", lambda row: "-" if row["difference"] is None else f"{row['difference']:.1g}"),
    }
    if not settings["memory"]:
        del columns["memory"]
    if all(row["difference"] is None for row in rows):
        del columns["difference"]
    table = Table(title=_configuration(rows[0]), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("model", "from", "runtime"):
        table.add_column(name, no_wrap=True)
    for name, _ in columns.values():
        table.add_column(name, justify="right")
    table.add_column("", overflow="fold")
    for row in rows:
        if row["error"] is None:
            cells = [show(row) for _, show in columns.values()]
        else:
            cells = ["-"] * len(columns)
        table.add_row(row["model"], row["source"], row["runtime"], *cells, _remark(row), style=_style(row))
    return table


def _ratio(row: BenchRow) -> str:
    if row["ratio"] is None:
        return "-"
    if row["name"] == row["reference"]:
        return "1"
    return f"{row['ratio']:.2f} ({row['ratio_low']:.2f}–{row['ratio_high']:.2f})"


def _remark(row: BenchRow) -> str:
    if row["error"] is not None:
        return f"[red]{escape(printable(row['error']))}[/]"
    function = {None: "", True: "same function", False: "another function"}[row["same_function"]]
    return escape(printable("; ".join(filter(None, ("best peer" if row["best_peer"] else "", function, row["note"])))))


def _style(row: BenchRow) -> str:
    return "dim" if row["same_function"] is False else ""


def _csv(rows: Sequence[BenchRow]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def plot(rows: Sequence[BenchRow]) -> str:
    """Images per second of each row, one panel per configuration, as an SVG for light and dark mode.

    Models as asked for are filled, peers hollow; a line spans the quartiles.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    from glocal.report.figures import STYLE, Looks, stand_alone

    panels = [(name, list(of_panel)) for name, of_panel in groupby(rows, _configuration)]
    looks = Looks(list(dict.fromkeys(row["model"] for row in rows)))
    heights = [len(of_panel) + 1.5 for _, of_panel in panels]
    with mpl.rc_context({**STYLE, "ytick.major.size": 0, "svg.hashsalt": "bench"}):
        figure = Figure(figsize=(11, 0.36 * sum(heights)), layout="constrained")
        FigureCanvasSVG(figure)
        all_axes = figure.subplots(len(panels), squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
        for axes, (name, of_panel) in zip(all_axes, panels, strict=True):
            _panel(axes, of_panel, looks)
            axes.set_title(name, loc="left", fontsize=11, fontweight="bold")
        all_axes[-1].set_xlabel("images per second; a line spans the quartiles, other packages' models are hollow")
        buffer = io.StringIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    return stand_alone(buffer.getvalue())


def _panel(axes: Any, rows: Sequence[BenchRow], looks: Any) -> None:
    beside = axes.get_yaxis_transform()  # x as a share of the axes, y as a row
    for y, row in enumerate(rows):
        low, high = row["ms_low"], row["ms_high"]
        if low is None or high is None:
            axes.text(0.01, y, printable(row["error"] or "")[:80], transform=beside, va="center", style="italic")
            continue
        colour, batch = looks.colour[row["model"]], 1000 * row["batch_size"]
        axes.plot([batch / high, batch / low], [y, y], color=colour, linewidth=3)
        looks.point(axes, row["images_per_s"], y, row["model"], filled=row["same_function"] is None)
        remark = "  another function" if row["same_function"] is False else ""
        axes.text(1.01, y, f"{row['images_per_s']:,.1f}{remark}", transform=beside, va="center")
    names = [", ".join(filter(None, (row["model"], row["source"], row["runtime"]))) for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(left=0)
