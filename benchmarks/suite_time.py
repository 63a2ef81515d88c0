"""Processor time of the test suite, by folder and test: what `make test` costs and where.

    python benchmarks/suite_time.py                       this tree, all quick tests, one process
    python benchmarks/suite_time.py -k io                 tests whose name contains "io"
    python benchmarks/suite_time.py --against ../old      two checkouts at once: writes docs/results/test-time.md

Seconds are user and system time, those of child processes included, so other work on the machine disturbs them less
than the clock. Collection and imports are the difference between the total and the sum over tests.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOG = "GLOCAL_TEST_TIME"
Times = list[tuple[float, str]]


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


def run(tree: Path, arguments: list[str]) -> tuple[float, Times]:
    """Run the suite of a tree as `make test` does, in one process; returns its processor time and that of each test."""
    total, times = 0.0, []
    with tempfile.TemporaryDirectory() as folder:
        for part in (["tests/reliability"], ["--ignore=tests/reliability"]):
            log = Path(folder) / "seconds.tsv"
            log.touch()
            environment = os.environ | {
                LOG: str(log), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TMPDIR": folder,
                "PYTHONPATH": os.pathsep.join([str(tree / "src"), str(Path(__file__).parent)]),
            }  # fmt: skip
            command = [sys.executable, "-m", "pytest", "-q", "-p", "suite_time", *part, *arguments]
            process = subprocess.Popen(command, cwd=tree, env=environment, stdout=sys.stderr)
            _, _, used = os.wait4(process.pid, 0)
            total += used.ru_utime + used.ru_stime
            lines = filter(None, log.read_text(encoding="utf-8").split("\n"))
            times += [(float(seconds), name) for seconds, name in (line.split("\t", 1) for line in lines)]
            log.unlink()
    return total, times


def by_folder(times: Times) -> Counter[str]:
    """Seconds by folder of tests."""
    folders: Counter[str] = Counter()
    for seconds, name in times:
        folders["/".join(name.split("::")[0].split("/")[:2])] += seconds  # type: ignore[assignment]
    return folders


def summary(total: float, times: Times) -> str:
    """A sentence: how many tests, how long, and how it spreads."""
    ordered = sorted((seconds for seconds, _ in times), reverse=True)
    return (
        f"{len(times):,} tests, {total:,.0f} s of processor time, {total - sum(ordered):.0f} s of it outside of tests;"
        f" the 100 longest tests {sum(ordered[:100]):.0f} s, the other {max(0, len(times) - 100):,} {rest(times):.0f} s"
    )


def rest(times: Times, count: int = 100) -> float:
    """Seconds of all but the longest tests."""
    return sum(sorted((seconds for seconds, _ in times), reverse=True)[count:])


def longest(times: Times, count: int = 25) -> list[str]:
    """The longest tests as rows of a table."""
    return [f"| `{name}` | {seconds:.1f} |" for seconds, name in sorted(times, reverse=True)[:count]]


def page(names: tuple[str, str], measured: list[tuple[float, Times]], processor: str) -> str:
    """Two trees side by side, as Markdown."""
    (base_total, base), (total, times) = measured
    before, after = by_folder(base), by_folder(times)
    rows = [f"| {name} | {before[name]:.0f} | {after[name]:.0f} |" for name, _ in (after | before).most_common()]
    return "\n".join([
        "# Processor time of the tests",
        "",
        "The quick tests of two commits at the same time on one machine, each in one process with one thread: "
        "`python benchmarks/suite_time.py --against TREE`.",
        "",
        f"* {names[0]}: {summary(base_total, base)}",
        f"* {names[1]}: {summary(total, times)}",
        f"* ratio: {total / base_total:.2f}; of the mean of a test: {total / len(times) / base_total * len(base):.2f}",
        f"* half of {names[0]} is {base_total / 2:.0f} s; without its 100 longest tests, {names[1]} takes "
        f"{total - sum(seconds for seconds, _ in times) + rest(times):.0f} s",
        f"* {processor}, {date.today()}",
        "",
        f"| seconds | {names[0]} | {names[1]} |", "| --- | --- | --- |", *rows,
        "",
        f"The longest tests of {names[1]}:", "", "| test | seconds |", "| --- | --- |", *longest(times), "",
    ])  # fmt: skip


def commit(tree: Path) -> str:
    """Short name of the commit of a checkout."""
    return subprocess.check_output(["git", "rev-parse", "--short=10", "HEAD"], cwd=tree, text=True).strip()


def main() -> None:
    """Measure and print, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="another checkout, measured at the same time")
    known, arguments = parser.parse_known_args()
    if known.against is None:
        total, times = run(ROOT, arguments)
        rows = [f"| {name} | {seconds:.0f} |" for name, seconds in by_folder(times).most_common()]
        print("\n".join([summary(total, times), "", "| tests | seconds |", "| --- | --- |", *rows, *longest(times)]))
        return
    trees = (known.against.resolve(), ROOT)
    with ThreadPoolExecutor(2) as pool:
        measured = list(pool.map(lambda tree: run(tree, arguments), trees))
    from glocal.bench import describe_environment  # not above: the tests import this file as a plugin

    machine = describe_environment()
    processor = f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, torch {machine['torch']}"
    target = ROOT / "docs/results/test-time.md"
    target.write_text(page((commit(trees[0]), commit(trees[1])), measured, processor), encoding="utf-8")
    print(f"Written: {target.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
