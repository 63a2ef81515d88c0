"""`glocal check`: which files of a data set are images, before anything is trained on them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glocal.cli import app

if TYPE_CHECKING:
    from glocal.data import Checked, Skipped


@app.command()
def check(
    data: Annotated[str, typer.Argument(help="A folder of images, or a built-in name.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where to write the list of files that cannot be used, one JSON object a line. "
            "skipped.jsonl here by default, if there are any."
        ),
    ] = None,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Follow links, each file and folder once.")
    ] = False,
    max_pixels: Annotated[int, typer.Option(min=1, help="Refuse images of more pixels, before decoding.")] = 64_000_000,
    max_bytes: Annotated[int, typer.Option(min=1, help="Refuse larger files, before reading.")] = 256 * 2**20,
    split_seed: Annotated[int, typer.Option(help="Seed of the part held out, where DATA has no train and val.")] = 0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that decode; one a processor by default.")
    ] = None,
) -> None:
    r"""Decode every image of DATA and list what cannot be used.

    Looks at DATA/train/CLASS/* and DATA/val/CLASS/*, or DATA/CLASS/*. Exit code 0 if every file is an image, 1 if some
    are not, 2 if DATA cannot be used at all.

    \b
    Examples:
      glocal check photos
      glocal check photos --out bad.jsonl --max-pixels 100000000
    """
    from glocal.data import ImageLimits, builtin_names, check_folder, load_data
    from glocal.files import printable

    if data.partition(":")[0] in builtin_names():
        source = load_data(data)
        typer.echo(f"{data}: built in, {len(source.train)} train and {len(source.val)} val images, all fine")
        return
    limits = ImageLimits(max_pixels=max_pixels, max_bytes=max_bytes)
    checked = check_folder(data, follow_links=follow_links, limits=limits, workers=workers)
    _print_counts(checked)
    skipped = checked.skipped
    if skipped:
        out = out or Path("skipped.jsonl")
        _write_skipped(out, skipped)
        typer.echo(f"{len(skipped)} files cannot be used; each with its reason: {printable(out)}")
    source = load_data(data, on_error="skip", split_seed=split_seed, follow_links=follow_links, limits=limits)
    for warning in source.warnings:
        typer.echo(f"Note: {warning}")
    typer.echo(f"{len(source.train)} train and {len(source.val)} val images: {source.split}")
    if skipped:
        raise typer.Exit(1)


def _print_counts(checked: "Checked") -> None:
    from collections import Counter

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from glocal.files import printable

    console = Console(highlight=False)
    parts = list(checked.tree.parts)
    table = Table("class", *(f"{part or 'images'}" for part in parts), "cannot be used", title=None)
    names = sorted({name for classes in checked.tree.parts.values() for name in classes})
    good = {part: checked.good(part) for part in parts}
    for name in names:
        counts = [len(good[part].get(name, [])) for part in parts]
        listed = sum(len(classes.get(name, [])) for classes in checked.tree.parts.values())
        table.add_row(escape(printable(name)), *map(str, counts), str(listed - sum(counts) or ""))
    console.print(table)
    if checked.skipped:
        reasons = Counter(_kind(skipped.reason) for skipped in checked.skipped)
        table = Table("reason", "files")
        for reason, count in reasons.most_common():
            table.add_row(escape(printable(reason)), str(count))
        console.print(table)


def _kind(reason: str) -> str:
    """A reason without the numbers of one file."""
    return reason.partition(" (")[0] if not reason.startswith("has ") else "above the limits"


def _write_skipped(out: Path, skipped: "list[Skipped]") -> None:
    import json

    from glocal.errors import GlocalError
    from glocal.files import atomic_write_text, printable

    lines = (json.dumps({"path": bad.path, "reason": bad.reason}) + "\n" for bad in skipped)
    try:
        atomic_write_text(out, "".join(lines))
    except OSError as error:
        raise GlocalError(f"out: expected a writable place, got {printable(out)}: {error.strerror}") from None
