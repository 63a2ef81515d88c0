"""`glocal claims`: test published claims by experiments."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import glocal.cli._options as opt
from glocal.cli import app, command_group
from glocal.cli._command_line import command_line
from glocal.cli._pages import PagesOut, ResultsFolder, write
from glocal.errors import GlocalError
from glocal.files import printable
from glocal.run_dir import check_writable
from glocal.schema import ClaimEntry

claims = command_group("claims", "Test claims of the papers by experiments on your images: list, run, report.")
app.add_typer(claims)

RUNNING = """\
\b
Examples:
  glocal claims run all fashion-mini --budget quick           40 minutes on two cores
  glocal claims run all fashion-mini                          20 epochs instead of 1.5: overnight
  glocal claims run cvt-cls fashion-mini                      one claim
  glocal claims run coupling,two-heads photos --budget 30ep   some, on your own images

\b
The same command resumes: finished runs are kept in --out. Claims in one folder share runs.

\b
Exit codes:
  0 every claim has a verdict
  1 a claim could not be tested: the reason is on its page; the same command retries
  2 invalid arguments, images or folder
  130 stopped by Ctrl-C: the same command resumes
"""

REPORTING = """\
\b
Examples:
  glocal claims report docs/results/claims-quick --out pages    the committed results
  glocal claims report runs/claims-fashion-mini-quick           into the folder itself

\b
Exit codes:
  0 written
  2 no valid claims.json in the folder, or --out is not writable
"""

AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]
Ids = Annotated[str, typer.Argument(metavar="ID|all", help="Comma-separated ids from `glocal claims list`.")]
Budget = Annotated[str, typer.Option(help="quick, default, or an amount of training of each run: 5ep, 90s, 2e14flop.")]
ImageSize = Annotated[
    int | None, typer.Option(help="Side in pixels; default: that of the micro models.", show_default="32")
]
Out = Annotated[
    Path | None, typer.Option(help="Folder for runs and results; default: runs/claims-DATA-BUDGET.", show_default=False)
]


@claims.command("list")
def list_claims(as_json: AsJson = False) -> None:
    """List the claims with their sources."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from glocal.claims import CLAIMS, describe

    if as_json:
        print(json.dumps([describe(claim) for claim in CLAIMS], indent=2))
        return
    table = Table(box=box.SIMPLE, show_edge=False)
    for column in ("id", "claim", "source"):
        table.add_column(column, no_wrap=column == "id")
    for claim in CLAIMS:
        table.add_row(claim.id, claim.sentence, claim.source)
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)


@claims.command("run", epilog=RUNNING)
def run(
    ids: Ids,
    data: opt.Data,
    budget: Budget = "default",
    seeds: opt.Seeds = 3,
    image_size: ImageSize = None,
    device: opt.Device = "auto",
    out: Out = None,
) -> None:
    """Test published claims on your images: supported, contradicted or inconclusive, with effect, interval and cost.

    Writes claims.json, index.html and a page for each claim.
    """
    from rich.markup import escape

    from glocal.claims import choose, run_claims
    from glocal.cli._display import Watcher, introduce_data, text_console
    from glocal.data import load_data

    console = text_console(stderr=True)
    chosen = choose(ids)
    out = out or Path("runs") / f"claims-{Path(data).name or 'data'}-{budget}"
    check_writable(out)
    source = load_data(data)
    introduce_data(console, source)
    console.print(
        f"{len(chosen)} claim{'s' if len(chosen) > 1 else ''}, budget {budget}; results in {escape(str(out))}"
    )

    watcher = Watcher(console)
    try:
        results = run_claims(
            chosen,
            source,
            out,
            budget=budget,
            seeds=seeds,
            image_size=image_size,
            device=device,
            side_by_side=True,
            command=command_line(),
            observer=watcher,
        )
    except KeyboardInterrupt:
        watcher.close()
        console.print(f"\nStopped. Finished runs are kept; to resume:\n  {escape(command_line())}")
        raise typer.Exit(130) from None
    except OSError as error:
        raise GlocalError(f"out: {error}; finished runs are kept; the same command resumes") from error
    finally:
        watcher.close()
    tested = [claim for claim in results["claims"] if claim["id"] in {claim.id for claim in chosen}]
    _conclude(text_console(), tested, out)
    if any(claim["verdict"] is None for claim in tested):
        raise typer.Exit(1)


@claims.command("report", epilog=REPORTING)
def report(folder: ResultsFolder, out: PagesOut = None) -> None:
    """Rewrite index.html and the page of each claim from claims.json, without training."""
    write(folder, out, ("glocal.claims/1",))


_STYLES = {"supported": "green", "contradicted": "red", "inconclusive": "yellow", None: "dim"}


def _conclude(console: Any, tested: list[ClaimEntry], out: Path) -> None:
    from rich.markup import escape

    for claim in tested:
        verdict = claim["verdict"] or "not tested"
        finding = claim["finding"].partition(": ")[2]
        console.print(
            f"[{_STYLES[claim['verdict']]}]{verdict:<12}[/] [bold]{claim['id']}[/]  {escape(printable(finding))}"
        )
    console.print("Verdicts are about small models on these images at this budget, not about ImageNet.")
    console.print(f"Pages: {escape(str(out / 'index.html'))}")
