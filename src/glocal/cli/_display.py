"""Terminal output of the commands: consoles, tables, progress, and the start and end of runs."""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

from glocal.files import printable
from glocal.formatting import clock, percent
from glocal.schema import METRIC_NAMES

if TYPE_CHECKING:
    from glocal.comparison import ComparisonSettings, Run
    from glocal.comparison.metric import Metric
    from glocal.comparison.race import Look, Race
    from glocal.data import DataSource
    from glocal.models.io import TaskName
    from glocal.schema import CompareResults, RecordedRun, RunResults
    from glocal.training import CurvePoint, TrainConfig, TrainingProgress

STATE = TextColumn("{task.fields[state]}")


def text_console(*, stderr: bool = False) -> Console:
    """A console for sentences, without wrapping."""
    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def table_console() -> Console:
    """A console for tables; no wrapping in a pipe, so that grep gets whole rows."""
    return Console(width=None if sys.stdout.isatty() else 240, highlight=False)


def simple_table(*columns: Column | str, numbers: Iterable[str] = (), **style: Any) -> Table:
    """A table of columns of text, then of right-aligned numbers."""
    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, **style)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def progress_bars(console: Console, *columns: ProgressColumn, transient: bool = True) -> Progress:
    """Bars with their descriptions, only on a terminal."""
    hidden = console.quiet or not console.is_terminal
    return Progress(TextColumn("{task.description}"), *columns, console=console, transient=transient, disable=hidden)


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal; yields a callback for the number of images done and of all."""
    with progress_bars(text_console(stderr=True), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bars:
        task = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def summary(results: Mapping[str, Any]) -> str:
    """The scores of a detector or segmenter in a few words."""
    if "miou" in results:
        return f"mIoU {percent(results['miou'])}, pixel accuracy {percent(results['pixel_accuracy'])}"
    text = f"box AP {percent(results['map'])} (AP50 {percent(results['map50'])})"
    if "mask" in results:
        mask = results["mask"]
        text += f", mask AP {percent(mask['map'])} (AP50 {percent(mask['map50'])})"
    return text


def introduce_data(console: Console, source: "DataSource") -> None:
    test = getattr(source, "test", None)  # of classification alone
    images = f"{len(source.train):,} training and {len(source.val):,} validation images"
    if test is not None:
        images = f"{len(source.train):,} training, {len(source.val):,} validation and {len(test):,} test images"
    console.print(
        f"[bold]{escape(printable(source.name))}[/]: {len(source.classes)} classes, {images} ({escape(source.split)})"
    )
    if source.skipped:
        console.print(f"[yellow]{len(source.skipped)} images skipped; the report lists them.[/]")
    for warning in source.warnings:
        console.print(f"[yellow]{escape(printable(warning))}[/]")


def introduce(console: Console, source: "DataSource", settings: "ComparisonSettings", out: Path) -> None:
    introduce_data(console, source)
    count = len(list(settings.runs()))
    runs = f"{count} probes" if settings.budget is None else f"{count} runs of {settings.budget} each"
    if settings.search == "race":
        runs = f"A race of {len(settings.models)} models, at most {runs}"
    head = "" if settings.head is None else f"{settings.head.head}, "
    console.print(
        f"{runs} ({head}{settings.mode}, {settings.image_size} px, {settings.device}): "
        f"{', '.join(settings.models)}; results in {escape(str(out))}"
    )


class Watcher:
    """Shows a bar for each run on a terminal, a line for each evaluation elsewhere."""

    def __init__(self, console: Console, metric: "Metric | None" = None) -> None:
        from glocal.comparison.metrics import TOP1

        self.console, self.metric = console, metric or TOP1
        self.finished = 0
        self.all: TaskID | None = None
        self.tasks: dict[str, TaskID] = {}
        self.shown: dict[str, CurvePoint] = {}
        self.bars = progress_bars(console, BarColumn(bar_width=10), STATE, transient=False)

    def say(self, text: str) -> None:
        self.console.print(escape(printable(text)))

    def start(self, run: "Run", number: int, total: int) -> None:
        self.bars.start()
        if self.all is None or number == 1:
            if self.all is not None:
                self.bars.remove_task(self.all)
            self.all = self.bars.add_task(f"all {total} runs", total=total, completed=number - 1, state="")
        self.tasks[run.id] = self.bars.add_task(run.id, total=1.0, state="")

    def update(self, run: "Run", progress: "TrainingProgress") -> None:
        point = progress.point
        score = percent(point.val_score) if point else "..."
        loss = "" if math.isnan(progress.loss) else f"loss {progress.loss:.2f}, "
        state = f"{loss}{self.metric.words.name} {score}, {progress.images_per_s:,.0f} images/s"
        if self.console.is_terminal:
            left = clock(progress.seconds_left)
            self.bars.update(self.tasks[run.id], completed=progress.done, state=f"{state}, {left} left")
        elif point and point != self.shown.get(run.id):
            self.shown[run.id] = point
            self.console.print(f"{run.id}: epoch {point.epoch:.1f}, {state}")

    def look(self, run: "Run", share: float) -> None:
        if share == 0:
            self.bars.start()
            self.tasks[run.id] = self.bars.add_task(f"analyzing {run.model}", total=1.0, state="")
            if not self.console.is_terminal:
                self.console.print(f"{run.id}: analyzing ...")
        elif run.id in self.tasks:
            self.bars.update(self.tasks[run.id], completed=share)
            if share == 1:
                self.bars.remove_task(self.tasks.pop(run.id))

    def finish(self, run: "Run", entry: "RecordedRun") -> None:
        self.bars.remove_task(self.tasks.pop(run.id))
        if self.all is not None:
            self.bars.advance(self.all)
        if entry["status"] == "paused":
            return
        if entry["status"] == "failed":
            self.console.print(f"[red]{run.id} failed:[/] {escape(printable(entry['error'] or ''))}")
        else:
            scores: Mapping[str, Any] = entry
            took = clock(entry["budget"]["seconds_to_budget"])
            self.console.print(f"{run.id}: {self.metric.words.name} {percent(scores[self.metric.key])} after {took}")

    def after_look(self, look: "Look", race: "Race") -> None:
        leader = look.standings[0]
        seeds = "1 seed" if look.seeds == 1 else f"{look.seeds} seeds"
        score = f"{percent(leader.score)} {self.metric.words.name}"
        text = f"After {100 * look.done:.0f} % of {seeds}: {leader.model} leads with {score}"
        for one in look.standings:
            if one.left == "behind":
                text += f"; {one.model} leaves, {-100 * one.difference:.1f} points behind"
            elif one.left == "dearer":
                text += f"; {one.model} leaves to {one.to}, which costs less"
        self.console.print(f"{escape(text)}. In the race: {', '.join(race.still)}.")

    def publish(self, results: Any) -> None:
        self.finished = sum(run["status"] == "ok" for run in results["runs"])

    def close(self) -> None:
        self.bars.stop()


class TrainWatcher:
    """Shows a bar on a terminal, a line for each evaluation elsewhere; only the first process prints."""

    def __init__(self, task: "TaskName", *, shown: bool) -> None:
        from glocal.tasks import TASKS

        self.task, self.score = task, METRIC_NAMES[TASKS[task].metric]
        self.console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=not shown)
        self.out = Console(highlight=False, soft_wrap=True, quiet=not shown)
        self.point: CurvePoint | None = None
        self.bar_id: TaskID | None = None
        self.bar = progress_bars(self.console, BarColumn(bar_width=20), STATE, transient=False)

    def introduce(self, source: "DataSource", config: "TrainConfig", out: Path) -> None:
        introduce_data(self.console, source)
        hardware = config.hardware
        processes = f", {hardware.world_size} processes ({hardware.strategy})" if hardware.world_size > 1 else ""
        self.console.print(
            f"[bold]{config.model.name}[/] for {config.schedule.epochs:g} epochs of {config.image_size} px images, "
            f"batch size {config.data.batch_size}, seed {config.seed}, on {hardware.device}{processes}; results in "
            f"{escape(printable(out))}"
        )

    def say(self, text: str) -> None:
        self.console.print(escape(text))

    def fail(self, text: str) -> None:
        self.console.print(f"[red]Failed:[/] {escape(text)}")

    def update(self, progress: "TrainingProgress") -> None:
        point = progress.point
        score = f", {self.score} {percent(point.val_score)}" if point else ""
        state = f"step {progress.step}, loss {progress.loss:.3f}{score}, {progress.images_per_s:,.0f} images/s"
        if self.console.is_terminal:
            if self.bar_id is None:
                self.bar.start()
                self.bar_id = self.bar.add_task("training", total=1.0, state="")
            left = clock(progress.seconds_left)
            self.bar.update(self.bar_id, completed=progress.done, state=f"{state}, {left} left")
        elif point is not None and point != self.point:
            self.console.print(f"epoch {point.epoch:.1f}, {state}")
        self.point = point

    def close(self) -> None:
        self.bar.stop()

    def conclude(self, results: "RunResults", out: Path) -> None:
        if self.task == "classification":
            self._conclude_classifier(results)
        else:
            plan = results["plan"]
            self.out.print(
                f"[bold]{plan['head']['head']}[/] on [bold]{plan['model']}[/]: {summary(results)} after "
                f"{results['epochs']:g} epochs ({clock(results['seconds'])}, {results['images_per_s']:,.1f} images/s)"
            )
        if results["nan_skips"]:
            self.out.print(f"[yellow]{results['nan_skips']} steps were skipped: loss or gradient not finite.[/]")
        self.out.print(f"Model: {escape(printable(out / 'model.safetensors'))}")

    def _conclude_classifier(self, results: "RunResults") -> None:
        top5 = f", top-5 {percent(results['top5'])}" if results["top5"] is not None else ""
        self.out.print(
            f"[bold]{results['plan']['model']}[/]: top-1 {percent(results['top1'])}{top5}, calibration error "
            f"{percent(results['ece'])} after {results['epochs']:g} epochs ({clock(results['seconds'])}, "
            f"{results['images_per_s']:,.0f} images/s)"
        )
        worst = sorted(
            (rate, name)
            for rate, name in zip(results["per_class"], results["classes"], strict=True)
            if rate is not None
        )[:3]
        self.out.print("Weakest classes: " + ", ".join(f"{escape(printable(n))} {percent(r)}" for r, n in worst))


def conclude(console: Console, results: "CompareResults", out: Path, metric: "Metric") -> None:
    for fraction in results["settings"]["fractions"]:
        rows = [row for row in results["summary"] if row["fraction"] == fraction]
        if rows:
            console.print(_leaderboard(rows, fraction, len(results["settings"]["fractions"]) > 1, metric))
    console.print(f"[bold]{escape(results['verdict']['sentence'])}[/]")
    for caveat in results["verdict"]["caveats"]:
        console.print(f"[yellow]Note:[/] {escape(printable(caveat))}")
    for model in results.get("analysis", {}).get("models", ()):
        for part, reason in model["failed"].items():
            console.print(f"[yellow]Note:[/] {model['run']}: {part} failed: {escape(printable(reason))}")
    console.print(f"Report: {escape(str(out / 'report.html'))}")


def _leaderboard(rows: Sequence[Mapping[str, Any]], fraction: float, several: bool, metric: "Metric") -> Table:
    title = f"trained on {100 * fraction:g} % of the training images" if several else None
    numbers = (f"{metric.words.name} %", "95 %", "behind", "M MACs", "ms/image", "train s")
    table = simple_table(
        Column("model", no_wrap=True), numbers=numbers, title=title, title_justify="left", collapse_padding=True
    )
    for row in rows:
        low, high = row[f"{metric.key}_ci"]
        behind = f"{abs(100 * row['difference_to_best']):.1f}{' (tie)' if row['tied_with_best'] else ''}"
        behind = behind if row.get("within_limits", True) else "above limits"
        table.add_row(
            f"[bold]{row['model']}[/]" if row["tied_with_best"] else row["model"],
            f"{100 * row[f'{metric.key}_mean']:.1f}",
            f"{100 * low:.1f}–{100 * high:.1f}",
            "best" if row is rows[0] else behind,
            f"{row['macs'] / 1e6:,.1f}",
            f"{row['latency_ms_b1']:.2f}",
            f"{row['seconds_to_budget']:.0f}",
        )
    return table
