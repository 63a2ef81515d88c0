"""Shared by the commands that rewrite pages: their arguments, and the writing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

ResultsFolder = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="Folder with claims.json or results.json.", show_default=False)
]
PagesOut = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder for the pages; default: FOLDER.", show_default=False)
]


def write(folder: Path, out: Path | None, schemas: Sequence[str] | None = None) -> None:
    """Write the pages and name them; of results of some schemas only, if these are given."""
    from glocal.files import printable
    from glocal.report.folder import COMMANDS, write_pages

    pages = write_pages(folder, out, schemas=schemas or tuple(COMMANDS))
    if pages.without_pictures:
        typer.echo("Note: the JSON holds no images, so the page is without pictures of them.", err=True)
    typer.echo(f"Report: {printable(pages.path)}")
