"""Every shell and Python block of README.md and docs/*.md: its commands exist, and it runs, quick or slow."""

import warnings

import pytest
import torch

from tests.docs import running
from tests.docs.blocks import PAGES, PYTHON, SHELL, Line, blocks_of, faults
from tests.docs.parsing import complaints

NAMES = [page.name for page in PAGES]
SLOW = [page.name for page in PAGES if any(block.mark == "slow" for block in blocks_of(page))]


def blocks(name):
    return blocks_of(PAGES[NAMES.index(name)])


@pytest.mark.parametrize("name", NAMES)
def test_blocks_are_marked_as_they_may_be(name):
    assert [fault for block in blocks(name) for fault in faults(block)] == []


@pytest.mark.parametrize("name", NAMES)
def test_commands_options_and_values_exist(name):
    """Of all blocks, run or not."""
    wrong = []
    for block in blocks(name):
        if block.mark == "skip":
            continue
        if block.language in SHELL:
            for line in block.lines():
                found = [] if line.output.startswith("Error: ") else complaints(line.words, block.reason == "synopsis")
                wrong += [f"{block.where}: {' '.join(line.words)}: {complaint}" for complaint in found]
        elif block.language in PYTHON:
            compile(block.text, block.where, "exec")
    assert wrong == []


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder, in which measuring takes no time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLOCAL_CACHE", str(tmp_path / ".cache"))
    monkeypatch.setattr("glocal.comparison.costs.TIMING_SECONDS", 0.02)
    monkeypatch.setattr("glocal.recommend.job.TIMING_SECONDS", 0.02)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def run_page(name, place, marks):
    """Run the blocks of a page in order: what one writes, or names in Python, the next can use."""
    names, chosen = {}, [b for b in blocks(name) if b.language in (*SHELL, *PYTHON) and b.mark in marks]
    running.write_files(place, chosen)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.export, webdataset and Lightning
        for block in chosen:
            running.take_for_granted(name, names)
            try:
                running.run(block, names)
            except (Exception, SystemExit) as error:
                raise AssertionError(f"{block.where}: {type(error).__name__}: {error}") from error


@pytest.mark.parametrize("name", NAMES)
def test_blocks_run(name, place):
    run_page(name, place, ("",))


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_slow_blocks_run(name, place):
    run_page(name, place, ("", "slow"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("glocal trian photos", "no command trian"),
        ("glocal train photos --model resnet_micro --lr 1", "No such option"),
        ("glocal train photos", "MissingParameter"),
        ("glocal train photos --model resnet_micr", "nearest: resnet_micro"),
        ("glocal train photos --model resnet_micro -s epoch=2", "unknown setting 'epoch'"),
        ("glocal train photos --model resnet_micro --recipe detect", "recipe detect"),
        ("glocal detect train coco --model resnet_micro --detector yolo", "detector yolo"),
        ("glocal compare photos --budget 5", "budget: expected"),
        ("glocal claims run cvt-clss photos", "nearest: cvt-cls"),
        ("glocal export run --to tflite", "to tflite"),
        ("torchrun --nproc-per-node 8 -m glocal train photos --model resnet_micro --nope", "No such option"),
        ("make demos", "no target demos"),
        ("pip install glocal[cluster]", "no extra cluster"),
        ("python benchmarks/scale.py --none", "has no --none"),
        ("python benchmarks/none.py", "FileNotFoundError"),
        ("Resuming from step 120.", "an unknown command"),
    ],
)
def test_a_planted_fault_is_found(line, message):
    (found,) = complaints(tuple(line.split()))
    assert message in found


def test_a_synopsis_is_a_call_with_brackets_and_alternatives():
    line = ("glocal", "claims", "run", "ID|all", "DATA", "[--budget", "quick|default|5ep]", "[--seeds", "3]")
    assert complaints(line) != []
    assert complaints(line, synopsis=True) == []


def test_blocks_are_found_with_their_marks_and_output(tmp_path):
    (tmp_path / "page.md").write_text(
        "<!-- test: skip: it is late -->\n```console\n$ glocal check a \\\n  b   # c\nError: d\n```\n\n"
        "```console\nls\n```\n"
        "<!-- test: slow -->\n```python\n1\n```\n<!-- test: parse -->\n```ruby\n```\n"
    )
    skipped, plain, slow, other = blocks_of(tmp_path / "page.md")
    assert skipped.lines() == [Line(("glocal", "check", "a", "b"), "Error: d")]
    assert plain.lines() == [Line(("ls",))]
    assert (plain.mark, slow.mark, slow.language, slow.text) == ("", "slow", "python", "1\n")
    assert faults(plain) == faults(slow) == []
    assert "expected a reason" in faults(skipped)[0]
    assert len(faults(other)) == 2
