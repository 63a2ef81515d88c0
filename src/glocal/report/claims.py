"""The pages of `glocal claims`: one per claim, and an overview."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from glocal.files import atomic_write_text
from glocal.report import claims_figures as figures
from glocal.report.figures import COLOURS
from glocal.report.page import environment, shown
from glocal.schema import ClaimEntry, ClaimMeasure, ClaimsResults

VERDICTS = ("supported", "contradicted", "inconclusive")
OVERVIEW = "index.html"
_BESIDE: Mapping[str, tuple[Callable[[ClaimEntry], Markup], str, str]] = {
    "frequencies": (
        figures.blocks, "Block by block",
        "Blocks below the line blur the features, blocks above it sharpen them. Hollow marks: the same models with "
        "random weights.",
    ),
    "places": (
        figures.depth, "By depth",
        "R² of a linear probe for position after each block. Negative: worse than predicting the mean.",
    ),
    "costs": (
        figures.sizes, "By map size",
        "Lines: formulas of the paper. Marks: counted MACs of our layers. Logarithmic scale.",
    ),
}  # fmt: skip
"""By metric: an additional figure, with title and caption."""


def write_claims(results: ClaimsResults, out: Path) -> Path:
    """Write OUT/ID.html for each claim and OUT/index.html; returns the overview's path.

    Args:
        results: contents of claims.json (docs/claims.md).
        out: an existing folder.

    Raises:
        ValueError: for an id with other characters than a-z, 0-9 and "-": it is used as a file name.
    """
    results = shown(results)
    for claim in results["claims"]:
        if not re.fullmatch(r"[a-z0-9-]+", claim["id"]):
            raise ValueError(f"expected the id of a claim, got {claim['id']!r}")
    for claim in results["claims"]:
        atomic_write_text(out / f"{claim['id']}.html", render_claim(claim, results))
    path = out / OVERVIEW
    atomic_write_text(path, render_overview(results))
    return path


def render_claim(claim: ClaimEntry, results: ClaimsResults) -> str:
    """The page of a claim as HTML: no scripts, no requests, all data escaped."""
    drawn = {}
    if claim["verdict"]:
        drawn = {"effects": figures.effects(claim), "arms": figures.arms(claim)}
        if claim["measure"]["key"] == "top1":
            drawn["curves"] = figures.curves(claim)
    beside = _BESIDE.get(claim["measure"]["key"]) if claim["verdict"] else None
    return _template("claim.html.j2").render(
        claim=claim, results=results, figures=drawn, colours=COLOURS, overview=OVERVIEW,
        beside=beside and {"figure": beside[0](claim), "title": beside[1], "text": beside[2]},
    )  # fmt: skip


def render_overview(results: ClaimsResults) -> str:
    """The overview as HTML."""
    claims = results["claims"]
    counts = {verdict: sum(claim["verdict"] == verdict for claim in claims) for verdict in VERDICTS}
    untested = sum(claim["verdict"] is None for claim in claims)
    return _template("claims.html.j2").render(
        results=results, claims=claims, counts=counts, untested=untested, colours=COLOURS,
        seconds=sum(results["seconds_of_runs"].values()), runs=len(results["seconds_of_runs"]),
    )  # fmt: skip


def _template(name: str) -> Any:
    made = environment()
    made.filters.update(level=_level, words=_words, unbroken=_unbroken)
    return made.get_template(name)


def _level(value: float | None, measure: ClaimMeasure) -> str:
    """A value in the unit of its metric, without the unit's name."""
    if value is None:
        return "–"
    text = f"{measure['factor'] * value:.{1 if measure['factor'] == 100 else 2}f}"
    return (text if float(text) else text.removeprefix("-")).replace("-", "\u2212")


def _unbroken(text: str) -> str:
    """Non-breaking spaces between numbers and units."""
    return re.sub(r"(?<=\d) (?=%|points|nats|R²)", "\u00a0", text)


def _words(model: str) -> Markup:
    """A model with its keywords, with line breaks allowed between them."""
    return Markup(":<wbr>").join(model.split(":"))
