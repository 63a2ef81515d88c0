"""Processor time of the test suite, by folder and test: what `make test` costs and where.

    python benchmarks/suite_time.py                       this tree, all quick tests, one process
    python benchmarks/suite_time.py --tree ../old -k io   another checkout, tests whose name contains "io"

Prints seconds of user and system time, those of child processes included, so other work on the machine disturbs them
less than the clock. Collection and imports are the difference between the total and the sum over tests.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

LOG = "GLOCAL_TEST_TIME"


def processor_seconds() -> float:
    """Of this process and its ended children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Write a line a test, fixtures included."""
    start = processor_seconds()
    yield
    with open(os.environ[LOG], "a", encoding="utf-8") as file:
        file.write(f"{processor_seconds() - start:.3f}\t{item.nodeid}\n")


def run(tree: Path, arguments: list[str], log: Path) -> float:
    """Run the suite of a tree as `make test` does, in one process; returns its processor time in seconds."""
    environment = os.environ | {
        LOG: str(log), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONPATH": os.pathsep.join([str(tree / "src"), str(Path(__file__).parent)]),
    }  # fmt: skip
    start = processor_seconds()
    for part in (["tests/reliability"], ["--ignore=tests/reliability"]):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "suite_time", *part, *arguments]
        subprocess.run(command, cwd=tree, env=environment, check=False)
    return processor_seconds() - start


def table(lines: list[str], total: float, longest: int = 20) -> str:
    """Seconds by folder of tests, and the longest tests, as Markdown."""
    tests = [(float(seconds), name) for seconds, name in (line.rstrip("\n").split("\t") for line in lines)]
    folders: Counter[str] = Counter()
    for seconds, name in tests:
        folders["/".join(name.split("::")[0].split("/")[:2])] += seconds  # type: ignore[assignment]
    rows = [f"| {name} | {seconds:.0f} |" for name, seconds in folders.most_common()]
    rows += [f"| {name} | {seconds:.1f} |" for seconds, name in sorted(tests, reverse=True)[:longest]]
    outside = total - sum(seconds for seconds, _ in tests)
    head = [f"{len(tests):,} tests, {total:.0f} s of processor time, {outside:.0f} s of it outside of tests.", ""]
    return "\n".join([*head, "| tests | seconds |", "| --- | --- |", *rows])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tree", type=Path, default=Path(__file__).parents[1], help="checkout to measure")
    known, arguments = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "seconds.tsv"
        log.touch()
        total = run(known.tree.resolve(), arguments, log)
        print(table(log.read_text(encoding="utf-8").splitlines(), total))


if __name__ == "__main__":
    main()
