"""The command line called in this process, as a person calls it."""

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
