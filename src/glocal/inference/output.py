"""The file of a job: a line for each image in the order of the inputs, appended as they come, renamed when complete.

    FILE.part        lines so far; after a crash the last one may be torn
    FILE.part.json   what the lines are of: model, inputs and settings; written first
    FILE             all lines

A resumed job writes the same bytes as an uninterrupted one.
"""

import csv
import io
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from glocal.errors import GlocalError
from glocal.files import escape_formula, lock, printable, sync
from glocal.run_dir import agree_on_plan

SYNC_SECONDS = 2.0
"""How much work a power cut may cost."""
SUFFIXES = (".jsonl", ".csv")


@dataclass(frozen=True)
class ClassPrediction:
    """What a model says of an image.

    Attributes:
        path: of the image.
        top: the most probable classes, most probable first, each with its probability; empty where there is an error.
        error: why the image is unreadable, or None.
    """

    path: str
    top: tuple[tuple[str, float], ...]
    error: str | None = None

    def entry(self) -> dict[str, Any]:
        """Its line as JSON."""
        top = [{"class": name, "probability": probability} for name, probability in self.top]
        return {"path": self.path, "top": top, "error": self.error}


@dataclass(frozen=True)
class ImagePrediction:
    """What a detector or segmenter says of an image.

    Attributes:
        path: of the image.
        error: why the image is unreadable, or None.
        fields: of its line, beside the two.
    """

    path: str
    error: str | None
    fields: Mapping[str, Any]

    def entry(self) -> dict[str, Any]:
        """Its line as JSON."""
        return {"path": self.path, "error": self.error, **self.fields}


class JsonLines:
    """A line of JSON for each image."""

    header = b""

    def line(self, prediction: ClassPrediction | ImagePrediction) -> bytes:
        """A prediction, with the end of its line."""
        return json.dumps(prediction.entry()).encode() + b"\n"

    def has_error(self, line: bytes, path: str) -> bool | None:
        """Whether the image of a line is unreadable; None if it is not a whole line of the image ``path``."""
        try:
            entry = json.loads(line)
            return entry["error"] is not None if line.endswith(b"\n") and entry["path"] == path else None
        except (ValueError, KeyError, TypeError):
            return None


class CsvLines:
    """A row of CSV for each image, with its ``top_k`` most probable classes."""

    def __init__(self, top_k: int) -> None:
        names = [f"{name}{i}" for i in range(1, top_k + 1) for name in ("class", "probability")]
        self.top_k, self.header = top_k, _row(["path", *names, "error"])

    def line(self, prediction: ClassPrediction) -> bytes:
        """A prediction, with the end of its line."""
        cells = [cell for name, probability in prediction.top for cell in (safe_cell(name), str(probability))]
        cells += [""] * (2 * self.top_k - len(cells))
        return _row([safe_cell(prediction.path), *cells, safe_cell(prediction.error or "")])

    def has_error(self, line: bytes, path: str) -> bool | None:
        """Whether the image of a line is unreadable; None if it is not a whole line of the image ``path``."""
        if not line.endswith(b"\n") or b"\0" in line:  # torn, or a page that a power cut left empty
            return None
        try:
            cells = next(csv.reader([line.decode()]))
        except (ValueError, StopIteration, csv.Error):
            return None
        return bool(cells[-1]) if len(cells) == 2 * self.top_k + 2 and cells[0] == safe_cell(path) else None


Lines = JsonLines | CsvLines


def safe_cell(text: str) -> str:
    """A text as a cell that no spreadsheet takes for a formula; control characters, line ends among them, escaped."""
    return printable(escape_formula(text))


def _row(cells: list[str]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue().encode()


class OutputFile:
    """The lines of a job as they are written; see `open_output`.

    Attributes:
        done: images that have a line.
        failed: those of them that could not be read.
    """

    def __init__(self, file: FileIO | None, lines: Lines, done: int, failed: int) -> None:
        self.file, self.lines, self.done, self.failed = file, lines, done, failed
        self.waiting = bytearray()
        self.synced = time.monotonic()

    def write(self, prediction: Any) -> None:
        """Append a line; every `SYNC_SECONDS` what was written is synced to disk.

        Raises:
            GlocalError: if it cannot be written.
        """
        self.waiting += self.lines.line(prediction)
        self.done += 1
        self.failed += prediction.error is not None
        if time.monotonic() - self.synced > SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Sync what was written to disk."""
        if self.file is None:
            return
        with writing(Path(os.fsdecode(self.file.name))):
            while self.waiting:
                del self.waiting[: self.file.write(self.waiting)]  # a disk that is nearly full takes a part
            os.fsync(self.file.fileno())
        self.synced = time.monotonic()


def check_output(path: Path) -> None:
    """Refuse a file of another format, or in a place that is not there, before anything is read.

    Raises:
        GlocalError: naming the file.
    """
    if path.suffix not in SUFFIXES:
        raise GlocalError(f"out: expected a name that ends in .jsonl or .csv, got {printable(path)}")
    if not path.parent.is_dir():
        raise GlocalError(f"out: expected an existing folder, got {printable(path.parent)}; make it, or choose another")
    if path.is_dir():
        raise GlocalError(f"out: expected a file, got the folder {printable(path)}")


@contextmanager
def open_output(
    path: Path, job: Mapping[str, Any], paths: tuple[str, ...], *, top_k: int, resume: bool
) -> Iterator[OutputFile]:
    """A job's file, held by this process until the block ends; it gets its name if all images then have a line.

    Args:
        path: ends in ``.jsonl`` or ``.csv``.
        job: what the lines depend on, as JSON; a resumed job must have the same.
        paths: of the images, in order.
        top_k: classes of each image.
        resume: resume an earlier job, or begin if there was none.

    Raises:
        GlocalError: for an existing file without ``resume``, or is of another job (the differences are
            listed), or in use, or cannot be written.
    """
    check_output(path)
    part, side = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")
    if not resume and (there := [file for file in (path, part) if file.exists()]):
        raise GlocalError(
            f"out: {printable(there[0])} is there already; "
            + (f"delete {printable(path)}" if there[0] == path else "continue with --resume, or delete it")
            + ", or choose another --out"
        )
    lines = JsonLines() if path.suffix == ".jsonl" else CsvLines(top_k)
    if path.exists():
        yield _completed(path, side, job, paths, lines)
        return
    with writing(part), open(part, "a+b", buffering=0) as file:  # "a": nothing that is there is ever overwritten
        _hold(file, part)
        _agree(side, part, job, resume)
        output = continue_lines(file, part, lines, paths)
        try:
            yield output
        finally:
            output.sync()
        if output.done == len(paths):
            os.replace(part, path)
            sync(path.parent)
            side.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of writing into a GlocalError."""
    try:
        yield
    except OSError as error:
        name = printable(error.filename or path)
        raise GlocalError(
            f"out: cannot write {name} ({error.strerror or error}); what was written is kept and --resume continues"
        ) from error


def _agree(side: Path, part: Path, job: Mapping[str, Any], resume: bool) -> None:
    """Compare the job with the one on file, or write it to the file before the first line."""
    if not (resume and side.exists()) and part.stat().st_size:
        raise GlocalError(
            f"--resume: {printable(part)} has no {printable(side.name)} that says what it is of; delete it, or choose "
            "another --out"
        )
    if not resume:
        side.unlink(missing_ok=True)
    agree_on_plan(side, job)


def _completed(path: Path, side: Path, job: Mapping[str, Any], paths: tuple[str, ...], lines: Lines) -> OutputFile:
    """A job that had been complete, maybe but for the side file."""
    if side.exists():
        agree_on_plan(side, job)
    done, failed, end = _whole_lines(path, lines, paths)
    if done < len(paths) or end < path.stat().st_size:
        raise GlocalError(f"--resume: {printable(path)} is complete, but of other images; choose another --out")
    side.unlink(missing_ok=True)
    return OutputFile(None, lines, done, failed)


def _hold(file: FileIO, part: Path) -> None:
    try:
        lock(file)
    except BlockingIOError as error:
        raise GlocalError(
            f"out: another process is writing {printable(part)}; wait for it or choose another --out"
        ) from error


def continue_lines(file: FileIO, part: Path, lines: Lines, paths: tuple[str, ...]) -> OutputFile:
    """Truncate an incomplete last line, and seek to the end."""
    done, failed, end = _whole_lines(part, lines, paths)
    file.truncate(end)
    output = OutputFile(file, lines, done, failed)
    if end == 0:
        output.waiting += lines.header
    return output


def _whole_lines(path: Path, lines: Lines, paths: tuple[str, ...]) -> tuple[int, int, int]:
    """How many lines are whole and of their image, how many of them have an error, and where they end."""
    done = failed = 0
    end = len(lines.header)
    with path.open("rb") as file:
        if file.read(end) != lines.header:
            return 0, 0, 0
        for line, name in zip(file, paths, strict=False):
            has_error = lines.has_error(line, name)
            if has_error is None:
                break
            done, failed, end = done + 1, failed + has_error, end + len(line)
    return done, failed, end
