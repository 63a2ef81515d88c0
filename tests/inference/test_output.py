"""The file of a job: its two formats, its parts, and who may go on with it."""

import csv
import json
import os

import pytest

from glocal.errors import GlocalError
from glocal.inference import ClassPrediction, output
from glocal.inference.output import CsvLines, JsonLines, open_output, safe_cell

PATHS = ("a.png", "=b\n\udcff.png", 'c", "d".png')
JOB = {"model": "m", "inputs": "i", "top_k": 2}
PREDICTIONS = (
    ClassPrediction(PATHS[0], (("+ant", 0.75), ("bee, or not", 0.25))),
    ClassPrediction(PATHS[1], (), '@broken "error": null}'),
    ClassPrediction(PATHS[2], (("bee, or not", 1.0), ("+ant", 1e-08))),
)


def write(path, count=3, resume=False, job=JOB, paths=PATHS):
    with open_output(path, job, paths, top_k=2, resume=resume) as file:
        before = file.done
        for prediction in PREDICTIONS[before:count]:
            file.write(prediction)
    return before, file.failed


def names(folder):
    return sorted(os.listdir(folder))


def test_jsonl_holds_everything_exactly(tmp_path):
    assert write(tmp_path / "o.jsonl") == (0, 1)
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [line["path"] for line in lines] == list(PATHS)
    assert lines[0]["top"] == [{"class": "+ant", "probability": 0.75}, {"class": "bee, or not", "probability": 0.25}]
    assert [line["error"] for line in lines] == [None, PREDICTIONS[1].error, None]
    assert lines[1]["top"] == []
    assert names(tmp_path) == ["o.jsonl"]


def test_csv_cells_are_no_formulas_and_no_line_ends(tmp_path):
    assert write(tmp_path / "o.csv") == (0, 1)
    with (tmp_path / "o.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["path", "class1", "probability1", "class2", "probability2", "error"],
        ["a.png", "'+ant", "0.75", "bee, or not", "0.25", ""],
        ["'=b\\n\\udcff.png", "", "", "", "", '\'@broken "error": null}'],
        ['c", "d".png', "bee, or not", "1.0", "'+ant", "1e-08", ""],
    ]
    assert (tmp_path / "o.csv").read_bytes().count(b"\n") == 4


@pytest.mark.parametrize("start", list("=+-@\t\r"))
def test_each_beginning_of_a_formula_is_quoted(start):
    assert safe_cell(f"{start}cmd|' /C calc'!A0").startswith("'")
    assert safe_cell("plain = text") == "plain = text"


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_any_cut_is_gone_on_with(tmp_path, suffix):
    write(tmp_path / f"whole{suffix}")
    whole = (tmp_path / f"whole{suffix}").read_bytes()
    lines = JsonLines() if suffix == ".jsonl" else CsvLines(2)
    ends = [len(lines.header)]
    for prediction in PREDICTIONS:
        ends.append(ends[-1] + len(lines.line(prediction)))
    assert ends[-1] == len(whole)
    path, part, side = (tmp_path / f"o{suffix}{more}" for more in ("", ".part", ".part.json"))
    for cut in range(0, len(whole) + 1, 3):
        for tail in (b"", bytes(7), b"\0\0\n"):  # what a power cut may leave
            part.write_bytes(whole[:cut] + tail)
            side.write_text(json.dumps(JOB))
            before, failed = write(path, resume=True)
            assert before == max(0, sum(end <= cut for end in ends) - 1)
            assert failed == 1
            assert path.read_bytes() == whole
            assert not part.exists()
            assert not side.exists()
            path.unlink()


def test_a_job_that_is_not_complete_keeps_its_parts(tmp_path):
    path = tmp_path / "o.jsonl"
    assert write(path, count=2) == (0, 1)
    assert names(tmp_path) == ["o.jsonl.part", "o.jsonl.part.json"]
    with pytest.raises(GlocalError, match=r"o\.jsonl\.part is there already; continue with --resume"):
        write(path)
    assert write(path, resume=True) == (2, 1)
    assert names(tmp_path) == ["o.jsonl"]
    with pytest.raises(GlocalError, match=r"o\.jsonl is there already; delete "):
        write(path)
    assert write(path, resume=True) == (3, 1)  # complete before: nothing to do
    (tmp_path / "o.jsonl.part.json").write_text(json.dumps(JOB))  # killed just before the end
    assert write(path, resume=True) == (3, 1)
    assert names(tmp_path) == ["o.jsonl"]
    with pytest.raises(GlocalError, match="complete, but of other images"):
        write(path, resume=True, paths=(*PATHS, "more"))


def test_an_exception_keeps_what_was_written(tmp_path):
    path = tmp_path / "o.jsonl"

    def fail():
        with open_output(path, JOB, PATHS, top_k=2, resume=False) as file:
            file.write(PREDICTIONS[0])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert write(path, resume=True) == (1, 1)


def test_another_job_is_refused_with_its_differences(tmp_path):
    path = tmp_path / "o.jsonl"
    write(path, count=1)
    with pytest.raises(GlocalError) as error:
        write(path, resume=True, job={**JOB, "model": "x\x1b", "top_k": 3})
    assert str(error.value).splitlines()[1:] == [
        '  model: was "m", is "x\\u001b"',
        "  top_k: was 2, is 3",
        "Use the same settings, or choose another --out.",
    ]
    (tmp_path / "o.jsonl.part.json").write_text("{")
    with pytest.raises(GlocalError, match="is damaged"):
        write(path, resume=True)
    (tmp_path / "o.jsonl.part.json").unlink()
    with pytest.raises(GlocalError, match="that says what it is of"):
        write(path, resume=True)
    assert names(tmp_path) == ["o.jsonl.part"]


def test_two_at_once_are_refused(tmp_path):
    path = tmp_path / "o.jsonl"
    with (
        open_output(path, JOB, PATHS, top_k=2, resume=False),
        pytest.raises(GlocalError, match="another process is writing"),
        open_output(path, JOB, PATHS, top_k=2, resume=True),
    ):
        pass


def test_a_full_disk_is_named_and_gone_on_after(tmp_path, monkeypatch):
    monkeypatch.setattr(output, "SYNC_SECONDS", 0)
    path = tmp_path / "o.jsonl"

    class Full:
        """A file that takes ten bytes more."""

        def __init__(self, file):
            self.file, self.room, self.name = file, 10, file.name

        def write(self, content):
            taken, self.room = self.file.write(content[: self.room]), 0
            if not taken:
                raise OSError(28, "No space left on device")
            return taken

        def fileno(self):
            return self.file.fileno()

    def fill():
        with open_output(path, JOB, PATHS, top_k=2, resume=False) as file:
            file.write(PREDICTIONS[0])
            file.file = Full(file.file)
            file.write(PREDICTIONS[1])

    with pytest.raises(
        GlocalError, match=r"cannot write .*o\.jsonl\.part \(No space left on device\); what was written"
    ):
        fill()
    assert write(path, resume=True) == (1, 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("o.txt", r"ends in \.jsonl or \.csv, got .*o\.txt"),
        ("no/o.csv", "an existing folder"),
        ("d.csv", "a file, got the folder"),
    ],
)
def test_places_that_cannot_be_are_refused(tmp_path, name, message):
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(GlocalError, match=message):
        write(tmp_path / name)
