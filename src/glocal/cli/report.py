"""`glocal report`: rewrite the pages of a results folder from its JSON."""

from glocal.cli import app
from glocal.cli._pages import PagesOut, ResultsFolder, write

EPILOG = """\
\b
Examples:
  glocal report docs/results/claims-quick --out pages      index.html and a page for each claim
  glocal report docs/results/fashion-mnist --out pages     report.html of a comparison
  glocal report study                                      into the folder itself

\b
For results of glocal compare, claims run and recommend. The JSON holds no images, so pages are written without
them; `glocal compare ... --resume` in the folder of the run includes them.

\b
Exit codes:
  0 written
  2 no valid results in the folder, or --out is not writable
"""


@app.command(epilog=EPILOG)
def report(folder: ResultsFolder, out: PagesOut = None) -> None:
    """Rewrite the HTML pages of a results folder from its JSON, without training or measuring."""
    write(folder, out)
