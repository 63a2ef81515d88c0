"""`glocal recommend`: which backbones to compare first on these images, and why."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import glocal.cli._options as opt
from glocal.cli import app
from glocal.cli._command_line import command_line, default_folder
from glocal.cli._training import load
from glocal.errors import GlocalError
from glocal.files import atomic_write_text, printable
from glocal.run_dir import check_writable
from glocal.schema import Candidate, ImageNeed, RecommendResults

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

EPILOG = """\
\b
Examples:
  glocal recommend fashion-mini
  glocal recommend photos --image-size 64 --on-error skip
  glocal recommend texture --budget 2ep --seeds 2       a built-in probe that needs only detail

\b
Exit codes:
  0 finished; if the needs are uncertain, one backbone of each kind is recommended
  2 invalid arguments, images or folder
  130 stopped by Ctrl-C; nothing is kept
"""

Budget = Annotated[str, typer.Option(help="Training of each reference: 5ep (epochs), 90s or 2e14flop.")]
Seeds = Annotated[int, typer.Option(help="Number of references: 3 means seeds 0, 1 and 2.")]
ImageSize = Annotated[
    int, typer.Option(help="Side in pixels; full-size backbones from 96 pixels, below it micro ones.")
]
Out = Annotated[
    Path | None, typer.Option(help="Folder for results; default: runs/recommend-DATA-TIME.", show_default=False)
]


@app.command(epilog=EPILOG)
def recommend(
    data: opt.Data,
    budget: Budget = "5ep",
    seeds: Seeds = 3,
    image_size: ImageSize = 32,
    on_error: opt.OnError = "stop",
    follow_links: opt.FollowLinks = False,
    split_seed: opt.SplitSeed = 0,
    device: opt.Device = "auto",
    out: Out = None,
) -> None:
    """Recommend two or three backbones to compare first, from the needs of your images and the costs on this machine.

    A small reference model is trained on clean, shuffled and blurred images. The accuracy it loses shows whether the
    images need layout or detail. Candidates are timed, not trained.

    Writes results.json and report.html.
    """
    from glocal.cli._display import introduce_data, text_console
    from glocal.recommend import check_request, pictures
    from glocal.recommend import recommend as run
    from glocal.report.recommend import write_recommendation

    check_request(budget=budget, seeds=seeds, image_size=image_size, device=device)
    out = out or default_folder("recommend", data)
    check_writable(out)
    console = text_console(stderr=True)
    try:
        source = load("classification", data, on_error=on_error, split_seed=split_seed, follow_links=follow_links)
        introduce_data(console, source)
        with _progress_bar(console) as update:
            results = run(
                source,
                budget=budget,
                seeds=seeds,
                image_size=image_size,
                device=device,
                command=command_line(),
                progress=update,
            )
    except KeyboardInterrupt:
        console.print("Stopped.")
        raise typer.Exit(130) from None
    try:
        out.mkdir(parents=True, exist_ok=True)
        atomic_write_text(out / "results.json", json.dumps(results, indent=1, allow_nan=False))
        page = write_recommendation(results, out, pictures=pictures(source, image_size))
    except OSError as error:
        raise GlocalError(f"out: cannot write to {printable(out)} ({error.strerror})") from error
    _conclude(text_console(), results, page)


@contextmanager
def _progress_bar(console: "Console") -> "Iterator[Callable[[float, str], None]]":
    """A bar on a terminal, a line for each activity elsewhere; yields a callback for the fraction done."""
    from rich.progress import BarColumn, TimeRemainingColumn

    from glocal.cli._display import progress_bars

    with progress_bars(console, BarColumn(bar_width=20), TimeRemainingColumn()) as bars:
        task, begun = bars.add_task("", total=1.0), ""

        def update(done: float, what: str) -> None:
            nonlocal begun
            bars.update(task, completed=done, description=what)
            activity = what.partition(":")[0]
            if activity != begun and done < 1 and not console.is_terminal:
                console.print(activity)
            begun = activity

        yield update


def _conclude(console: "Console", results: RecommendResults, page: Path) -> None:
    from rich.markup import escape

    console.print(_conditions(results["need"]))
    console.print(f"[bold]{escape(results['finding']['sentence'])}.[/]")
    console.print(_candidates(results["recommended"]))
    for one in results["recommended"]:
        console.print(f"{one['model']}: {escape(one['reason'])} ({escape(one['source'])})")
    for caveat in results["caveats"]:
        console.print(f"[yellow]Note:[/] {escape(caveat)}")
    console.print(f"Compare them:\n  {escape(printable(results['next']))}")
    console.print(f"Report: {escape(printable(page))}")


def _conditions(need: ImageNeed) -> "Table":
    from glocal.cli._display import simple_table

    numbers = ("top-1 %", "95 %", "remaining above chance %")
    table = simple_table("reference, images", numbers=numbers, collapse_padding=True)
    for row in need["conditions"]:
        accuracy, kept = row["accuracy"], row["kept"]
        table.add_row(
            row["name"],
            f"{100 * accuracy['mean']:.1f}",
            f"{100 * accuracy['low']:.1f}–{100 * accuracy['high']:.1f}",
            "–" if kept is None else f"{100 * kept['mean']:.0f} ({100 * kept['low']:.0f}–{100 * kept['high']:.0f})",
        )
    table.add_row("chance", f"{100 * need['chance']:.1f}", "", "")
    return table


def _candidates(recommended: list[Candidate]) -> "Table":
    from glocal.cli._display import simple_table

    numbers = ("M parameters", "M MACs", "ms/image", "images/s", "MiB, training")
    table = simple_table("compare first", numbers=numbers, collapse_padding=True)
    for one in recommended:
        table.add_row(
            f"[bold]{one['model']}[/]",
            f"{one['params'] / 1e6:,.2f}",
            f"{one['macs'] / 1e6:,.1f}",
            f"{one['latency_ms_b1']:.2f}",
            f"{one['images_per_s_b32']:,.0f}",
            f"{one['peak_memory_mib']:,.0f}",
        )
    return table
