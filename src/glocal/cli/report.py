"""`glocal report`: the pages of a folder of results, written again from its JSON."""

from glocal.cli import app
from glocal.cli._pages import PagesOut, ResultsFolder, write

EPILOG = """\
\b
Examples:
  glocal report docs/results/claims-quick --out pages      index.html and a page for each claim
  glocal report docs/results/fashion-mnist --out pages     report.html of a comparison
  glocal report study                                      into the folder itself

\b
Takes results of glocal compare, claims run and recommend. The JSON holds no images: a page that shows some is
written without them and says so; `glocal compare ... --resume` in the folder of the run writes them, too.

\b
Exit codes:
  0 written
  2 no results in the folder, or they cannot be used; or --out cannot be written
"""


@app.command(epilog=EPILOG)
def report(folder: ResultsFolder, out: PagesOut = None) -> None:
    """Write the HTML pages of a folder of results again, from its JSON: nothing is trained or measured."""
    write(folder, out)
