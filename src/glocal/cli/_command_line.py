"""The command line as typed, and the files and folders that it names."""

import json
import shlex
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from glocal.errors import GlocalError
from glocal.files import atomic_write_text, printable


def command_line() -> str:
    """The command as typed."""
    return shlex.join(["glocal", *sys.argv[1:]])


def resume_command(out: Path | None = None) -> str:
    """The command as typed with --resume; if ``out`` is given, also with --out."""
    command = shlex.join(["glocal", *(word for word in sys.argv[1:] if word != "--resume"), "--resume"])
    return command if out is None or "--out" in command else f"{command} --out {shlex.quote(str(out))}"


def default_folder(command: str, data: str) -> Path:
    """``runs/COMMAND-DATA-TIME``."""
    return Path("runs") / f"{command}-{Path(data).name or 'data'}-{datetime.now():%Y%m%d-%H%M%S}"


def check_file(out: Path | None) -> None:
    """Reject an unwritable output file before any work."""
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise GlocalError(f"out: expected a file in an existing folder, got {printable(out)}")


def write_json(out: Path, results: Mapping[str, Any]) -> None:
    """Write results to a file.

    Raises:
        GlocalError: if it cannot be written.
    """
    try:
        atomic_write_text(out, json.dumps(results, indent=1, allow_nan=False))
    except OSError as error:
        raise GlocalError(f"out: cannot write {printable(out)} ({error.strerror})") from error
