"""Rewrite the pages of a results folder from its JSON."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import UndefinedError

from glocal.errors import GlocalError
from glocal.files import printable
from glocal.report.claims import write_claims
from glocal.report.page import names_pictures, write_report
from glocal.report.recommend import write_recommendation

FILES = ("claims.json", "results.json")
COMMANDS = {
    "glocal.claims/1": "glocal claims run",
    "glocal.compare/1": "glocal compare",
    "glocal.recommend/1": "glocal recommend",
}
"""By schema: the command whose results these are."""
_WRITERS: Mapping[str, Callable[[Any, Path], Path]] = {
    "glocal.claims/1": write_claims,
    "glocal.compare/1": write_report,
    "glocal.recommend/1": write_recommendation,
}
_DAMAGE = (AttributeError, IndexError, KeyError, StopIteration, TypeError, UndefinedError, ValueError)


class Pages(NamedTuple):
    """Result of `write_pages`.

    Attributes:
        path: of the page to open first.
        without_pictures: whether images are missing, as they are not in the JSON.
    """

    path: Path
    without_pictures: bool


def write_pages(folder: Path, out: Path | None = None, *, schemas: Sequence[str] = tuple(COMMANDS)) -> Pages:
    """Rewrite the pages of a results folder, identical to those of the run except for images.

    Args:
        folder: with claims.json or results.json.
        out: folder for the pages, created if missing; by default the folder of the JSON.
        schemas: accepted ones.

    Raises:
        GlocalError: if the folder has no such JSON, it is damaged, the pages cannot be written, or would replace a page
            with images.
    """
    source, results = _read(folder, schemas)
    out = out or folder
    schema = results["schema"]
    try:
        without = schema == "glocal.recommend/1" or (schema == "glocal.compare/1" and names_pictures(results))
        if without and (out / "report.html").exists():
            raise GlocalError(
                f"out: {printable(out / 'report.html')} exists, and the new page would be without pictures of "
                "images; choose another --out"
            )
        out.mkdir(parents=True, exist_ok=True)
        return Pages(_WRITERS[schema](results, out), without)
    except OSError as error:
        raise GlocalError(f"out: cannot write to {printable(out)} ({error.strerror}); choose another --out") from error
    except GlocalError:
        raise
    except _DAMAGE as error:
        raise GlocalError(
            f"{printable(source)}: damaged: expected results of {COMMANDS[schema]} "
            f"({type(error).__name__}: {printable(str(error))})"
        ) from error


def _read(folder: Path, schemas: Sequence[str]) -> tuple[Path, Any]:
    """The JSON of a folder and its path."""
    expected = f"expected results of {' or '.join(COMMANDS[schema] for schema in schemas)}"
    source = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if source is None:
        found = "a folder without either" if folder.is_dir() else "a file" if folder.exists() else "nothing"
        raise GlocalError(f"{printable(folder)}: expected a folder with {' or '.join(FILES)}, got {found}")
    try:
        results = json.loads(source.read_text(encoding="utf-8"))
        schema = results["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GlocalError(f"{printable(source)}: {expected}, got a damaged or another file ({error})") from error
    if schema not in schemas:
        raise GlocalError(f"{printable(source)}: {expected}, got schema {printable(repr(schema))}{_advice(results)}")
    return source, results


def _advice(results: Mapping[str, Any]) -> str:
    """Advice for other results."""
    if results["schema"] in tuple(COMMANDS):
        return "; `glocal report` writes its pages"
    command = results.get("command")
    return f"; the command itself writes its page: {printable(command)}" if isinstance(command, str) else ""
