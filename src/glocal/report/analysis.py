"""One self-contained HTML page, and its figures as files, of the results of `glocal.analysis`."""

import re
from pathlib import Path
from typing import Any

from markupsafe import Markup

from glocal.files import atomic_write_text, printable
from glocal.report.analysis_pages import PAGES, Page, Subject
from glocal.report.figures import COLOURS
from glocal.report.page import environment

PAPER_COLOURS = {"ink": "#18202c", "grid": "#dbe0e8", "paper": "#ffffff", "right": "#0072b2", "wrong": "#d55e00"} | {
    f"series-{i}": light for i, (light, _) in enumerate(COLOURS)
}


def write_analysis(out: Path, subject: Subject, result: Any, other: Any = None) -> Path:
    """Write OUT/report.html and each figure as OUT/figures/NAME.svg; returns the page's path.

    Args:
        out: an existing folder.
        subject: what was analysed.
        result: of `glocal.analysis`.
        other: result of a second model, for kinds that compare two.
    """
    page = PAGES[subject.kind](result, subject, other)
    folder = out / "figures"
    folder.mkdir(exist_ok=True)
    for panel in page.panels:
        atomic_write_text(folder / f"{panel.name}.svg", standalone(panel.figure))
    path = out / "report.html"
    atomic_write_text(path, render(page, subject))
    return path


def render(page: Page, subject: Subject) -> str:
    """The page as text: no script, no request, everything from data escaped."""
    rows = [[printable(cell) for cell in row] for row in page.rows]
    texts = {
        "kind": subject.kind,
        "model": subject.model,
        "weights": subject.weights,
        "data": subject.data,
        "command": subject.command,
        "glocal": subject.glocal,
        "created": subject.created,
        "versus": subject.versus or "",
    }
    shown = {name: printable(text) for name, text in texts.items()}
    template = environment().get_template("analysis.html.j2")
    return template.render(page=page, rows=rows, subject=shown, colours=COLOURS, finding=printable(page.finding))


def standalone(figure: Markup) -> str:
    """A figure of a page as a standalone SVG file, in light colours on white."""
    text = re.sub(r"var\(--([a-z0-9-]+)\)", lambda name: PAPER_COLOURS[name[1]], str(figure))
    return text.replace("<svg ", '<svg style="background:#ffffff;font-family:sans-serif" ', 1)


__all__ = ["Page", "Subject", "render", "standalone", "write_analysis"]
