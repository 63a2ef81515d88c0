"""The command line called in this process, as a person calls it."""

import re
import sys

import pytest

import glocal.cli


@pytest.fixture
def command(monkeypatch, capsys):
    """``command("train", "data", ...)`` -> (exit code, stdout, stderr); a traceback is never shown."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["glocal", *map(str, arguments)])
        code = 0
        try:
            glocal.cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


def assert_written_again(command, run):
    """`glocal report` writes the page of a run from its JSON as the run wrote it, but for pictures of images."""
    code, out, err = command("report", run, "--out", run / "again")
    assert (code, out) == (0, f"Report: {run / 'again' / 'report.html'}\n")
    first, second = ((folder / "report.html").read_text() for folder in (run, run / "again"))
    assert "without pictures" in err
    second, notes = re.subn(r'<p class="measured">Without pictures of images[^\n]*\n', "", second)
    assert notes == 1
    assert "data:image/" not in second
    first = re.sub(r'<img[^>]* src="data:image/[^>]*>', "", first)
    assert re.sub(r'<p class="shown"></p>\n?', "", first) == second
