"""`glocal recommend`: which backbones to compare first on these images, and why."""

import json
import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glocal.cli import app
from glocal.errors import GlocalError
from glocal.files import atomic_write_text, printable
from glocal.run_dir import check_writable

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


@app.command(epilog=EPILOG)
def recommend(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Folder of images, shards (train-{000..099}.tar), or a built-in set.")
    ],
    budget: Annotated[str, typer.Option(help="Training of each reference: 5ep (epochs), 90s or 2e14flop.")] = "5ep",
    seeds: Annotated[int, typer.Option(help="Number of references: 3 means seeds 0, 1 and 2.")] = 3,
    image_size: Annotated[
        int, typer.Option(help="Side in pixels; full-size backbones from 96 pixels, below it micro ones.")
    ] = 32,
    on_error: Annotated[str, typer.Option(help="On unreadable images: stop, or skip and list them.")] = "stop",
    follow_links: Annotated[bool, typer.Option("--follow-links", help="Follow links in the folder.")] = False,
    split_seed: Annotated[int, typer.Option(help="Seed of the held-out split, if there is no val folder.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder for results; default: runs/recommend-DATA-TIME.", show_default=False)
    ] = None,
) -> None:
    """Recommend two or three backbones to compare first, from the needs of your images and the costs on this machine.

    A small reference model is trained on clean, shuffled and blurred images. Its losses of accuracy show whether the
    images need layout or detail. Candidates are timed, not trained.

    Writes results.json and report.html.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from glocal.cli._display import introduce_data
    from glocal.data import load_data
    from glocal.recommend import check_request, pictures
    from glocal.recommend import recommend as run
    from glocal.report.recommend import write_recommendation

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    check_request(budget=budget, seeds=seeds, image_size=image_size, device=device)
    out = out or Path("runs") / f"recommend-{Path(data).name or 'data'}-{datetime.now():%Y%m%d-%H%M%S}"
    check_writable(out)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TimeRemainingColumn())
    bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task, begun = bars.add_task("", total=1.0), ""

    def update(done: float, what: str) -> None:
        nonlocal begun
        bars.update(task, completed=done, description=what)
        head = what.partition(":")[0]
        if head != begun and done < 1 and not console.is_terminal:
            console.print(head)
        begun = head

    try:
        source = load_data(data, on_error=on_error, split_seed=split_seed, follow_links=follow_links)  # type: ignore[arg-type]
        introduce_data(console, source)
        with bars:
            results = run(
                source,
                budget=budget,
                seeds=seeds,
                image_size=image_size,
                device=device,
                command=shlex.join(["glocal", *sys.argv[1:]]),
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
    shown = Console(highlight=False, soft_wrap=True)
    _conclude(shown, results)
    shown.print(f"Report: {escape(printable(page))}")


def _conclude(console: "Console", results: dict[str, Any]) -> None:
    from rich.markup import escape

    console.print(_conditions(results["need"]))
    console.print(f"[bold]{escape(results['finding']['sentence'])}.[/]")
    console.print(_candidates(results["recommended"]))
    for one in results["recommended"]:
        console.print(f"{one['model']}: {escape(one['reason'])} ({escape(one['source'])})")
    for caveat in results["caveats"]:
        console.print(f"[yellow]Note:[/] {escape(caveat)}")
    console.print(f"Compare them:\n  {escape(printable(results['next']))}")


def _conditions(need: dict[str, Any]) -> "Table":
    table = _table("reference, images", "top-1 %", "95 %", "remaining above chance %")
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


def _candidates(recommended: list[dict[str, Any]]) -> "Table":
    table = _table("compare first", "M parameters", "M MACs", "ms/image", "images/s", "MiB, training")
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


def _table(first: str, *others: str) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table
