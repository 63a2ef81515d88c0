"""`glocal check`: which files of a data set are images, before anything is trained on them."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glocal.cli import app

if TYPE_CHECKING:
    from glocal.data import Checked, Skipped

EXAMPLES = """\b
Examples:
  glocal check photos                        what is in the folder photos
  glocal check photos --out bad.jsonl        write the list there
  glocal check photos --max-pixels 100000000
"""


@app.command(epilog=EXAMPLES)
def check(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A folder of images, or a built-in name.")],
    out: Annotated[
        Path,
        typer.Option(
            help="Where to list the files that cannot be used, one JSON object a line: a file, or a folder for "
            "skipped.jsonl. Empty if there are none."
        ),
    ] = Path("skipped.jsonl"),
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Follow links, each file and folder once.")
    ] = False,
    max_pixels: Annotated[
        int, typer.Option(min=1, max=178_956_970, help="Refuse images of more pixels, before decoding.")
    ] = 64_000_000,
    max_bytes: Annotated[int, typer.Option(min=1, help="Refuse larger files, before reading.")] = 256 * 2**20,
    split_seed: Annotated[int, typer.Option(help="Seed of the part held out, where DATA has no val folder.")] = 0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that decode; one a processor by default.")
    ] = None,
) -> None:
    """Decode every image of DATA and list what cannot be used.

    Looks at DATA/train/CLASS/* and DATA/val/CLASS/*, or DATA/CLASS/*. Exit code 0 if every file is an image, 1 if some
    are not, 2 if DATA cannot be used at all.
    """
    from glocal.data import ImageLimits, builtin_names, check_folder, load_data, split_folder

    if data.partition(":")[0] in builtin_names():
        source = load_data(data)
        _write_skipped(out, source.skipped)
    else:
        limits = ImageLimits(max_pixels=max_pixels, max_bytes=max_bytes)
        checked = check_folder(data, follow_links=follow_links, limits=limits, workers=workers)
        _print_counts(checked)
        _write_skipped(out, checked.skipped)
        source = split_folder(checked, split_seed=split_seed)
    for warning in source.warnings:
        typer.echo(f"Note: {warning}")
    typer.echo(f"{len(source.train)} train and {len(source.val)} val images: {source.split}")
    if source.skipped:
        raise typer.Exit(1)


def _print_counts(checked: "Checked") -> None:
    from collections import Counter

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from glocal.files import printable

    console = Console(width=None if sys.stdout.isatty() else 240, highlight=False)  # a pipe has no width to fit in
    parts = checked.tree.parts
    good = {part: checked.good(part) for part in parts}
    table = Table("class", show_footer=True)
    table.columns[0].footer = "all"
    for part in parts:
        total = sum(len(paths) for paths in good[part].values())
        table.add_column(part or "images", footer=str(total), justify="right")
    table.add_column("cannot be used", footer=str(len(checked.skipped)), justify="right")
    for name in sorted({name for classes in parts.values() for name in classes}):
        counts = [len(good[part].get(name, [])) for part in parts]
        bad = sum(len(classes.get(name, [])) for classes in parts.values()) - sum(counts)
        table.add_row(escape(printable(name)), *map(str, counts), str(bad))
    console.print(table)
    if checked.skipped:
        kinds = Counter(_kind(skipped.reason) for skipped in checked.skipped)
        table = Table("why it cannot be used", "files")
        for kind, count in kinds.most_common():
            table.add_row(escape(printable(kind)), str(count))
        console.print(table)


def _kind(reason: str) -> str:
    """A reason without the numbers and names of one file."""
    if reason.startswith("has "):
        return "above the limits"
    if reason.startswith("the same file as "):
        return "the same file as another"
    return reason.partition(" (")[0]


def _write_skipped(out: Path, skipped: "tuple[Skipped, ...]") -> None:
    import json

    from glocal.errors import GlocalError
    from glocal.files import atomic_write_text, printable

    out = out / "skipped.jsonl" if out.is_dir() else out
    lines = (json.dumps({"path": bad.path, "reason": bad.reason}) + "\n" for bad in skipped)
    try:
        atomic_write_text(out, "".join(lines))
    except OSError as error:
        raise GlocalError(f"--out: expected a place to write to, got {printable(out)}: {error.strerror}") from None
    if skipped:
        typer.echo(f"Files that cannot be used: {len(skipped)}, each with its reason in {printable(out)}")
