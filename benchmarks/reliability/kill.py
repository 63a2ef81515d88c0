"""kill -9 at random and at aimed moments of a run, then --resume: is it the run that nobody killed?

    python benchmarks/reliability/kill.py [RANDOM [AIMED [NAIVE]]]     60 60 30

Random kills alone give false comfort: few of them hit a write. So every call that changes what is on the disk is found
by watching an unbroken run, and kills are aimed before, inside (some bytes written) and after such calls. The control
is a saver that writes its checkpoint with torch.save onto one file: the same harness must see it lose.
"""

import builtins
import io
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import safetensors.torch
import torch
from benchmarks.reliability import forked
from benchmarks.reliability.record import record

from glocal import files
from glocal.training import checkpoint, run

SEED = 0


def die() -> None:
    """As a power switch would: nothing is tidied up."""
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Aim:
    """At the ``number``-th call that changes the disk: ``before``, ``in`` (after a share of the bytes) or ``after``."""

    number: int
    when: str
    share: float = 0.5


@dataclass(frozen=True)
class Event:
    """A call that changes the disk: what it does, and to which file; ``torn`` if it can be half done."""

    what: str
    path: str
    torn: bool
    to: str = ""

    @property
    def stage(self) -> str:
        """Without the numbers of step and process."""
        plain = re.sub(r"\.tmp-[\w-]+", ".tmp", re.sub(r"step-\d+", "step", f"{self.what} {self.path} {self.to}"))
        return plain.strip()


class Watch:
    """Numbers the calls of this process that change what is in a folder, and dies at one of them."""

    def __init__(self, out: Path, aim: Aim | None = None, log: Path | None = None) -> None:
        self.out, self.aim, self.log, self.count = out, aim, log, 0

    def at(
        self, what: str, path: Any, act: Callable[[], Any], tear: Callable[[float], Any] | None = None, to: Any = ""
    ) -> Any:
        """Do a call, or die before, in or after it."""
        if not Path(path).is_relative_to(self.out):
            return act()
        self.count += 1
        if self.log is not None:
            name = str(Path(path).relative_to(self.out))
            event = Event(what, name, tear is not None, str(Path(to).relative_to(self.out)) if to else "")
            with builtins.open(self.log, "a") as log:
                log.write(repr(event) + "\n")
        when = self.aim.when if self.aim is not None and self.aim.number == self.count else ""
        if when == "before":
            die()
        if when == "in" and tear is not None:
            tear(self.aim.share)  # type: ignore[union-attr]
            die()
        result = act()
        if when:
            die()
        return result

    def install(self) -> "Watch":
        """Into this process, for good: it is a fork. The product has no hooks; what it calls is replaced."""
        mkdir, rename, write_text = Path.mkdir, Path.rename, Path.write_text
        fsync, replace, rmtree, unlink = os.fsync, os.replace, shutil.rmtree, Path.unlink
        save_file = checkpoint.save_file

        def new_folder(path: Path, *args: Any, **kwargs: Any) -> None:
            if path.exists():
                mkdir(path, *args, **kwargs)
            else:
                self.at("mkdir", path, lambda: mkdir(path, *args, **kwargs))

        def save(tensors: Any, path: Path, *args: Any, **kwargs: Any) -> None:
            def tear(share: float) -> None:
                content = safetensors.torch.save(tensors)
                path.write_bytes(content[: int(share * len(content))])

            self.at("write", path, lambda: save_file(tensors, path, *args, **kwargs), tear)

        def text(path: Path, content: str, *args: Any, **kwargs: Any) -> int:
            tear = lambda share: path.write_bytes(content.encode()[: int(share * len(content))])  # noqa: E731
            return self.at("write", path, lambda: write_text(path, content, *args, **kwargs), tear)

        def sync(descriptor: int) -> None:
            self.at("fsync", os.readlink(f"/proc/self/fd/{descriptor}"), lambda: fsync(descriptor))

        def remove(path: Any, *args: Any, **kwargs: Any) -> None:
            def tear(share: float) -> None:
                names = sorted(os.listdir(path))
                for name in names[: max(1, int(share * len(names)))]:
                    os.unlink(Path(path) / name)

            self.at("rmtree", path, lambda: rmtree(path, *args, **kwargs), tear)

        def open_(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            file = builtins.open(path, mode, *args, **kwargs)  # noqa: SIM115 - the caller closes it
            return _Torn(file, self, path) if mode in ("xb", "a") else file

        Path.mkdir, Path.write_text = new_folder, text  # type: ignore[assignment]
        Path.rename = lambda old, new: self.at("rename", old, lambda: rename(old, new), to=new)  # type: ignore
        Path.unlink = lambda path, *a, **k: self.at("unlink", path, lambda: unlink(path, *a, **k))  # type: ignore
        os.replace = lambda old, new: self.at("replace", old, lambda: replace(old, new), to=new)  # type: ignore
        os.fsync, shutil.rmtree, checkpoint.save_file = sync, remove, save  # type: ignore[assignment]
        files.open = run.open = open_  # type: ignore[attr-defined]
        return self


class _Torn:
    """A file whose writes are watched."""

    def __init__(self, file: Any, watch: Watch, path: Any) -> None:
        self.file, self.watch, self.path = file, watch, path

    def write(self, content: Any) -> Any:
        def tear(share: float) -> None:
            self.file.write(content[: int(share * len(content))])
            self.file.flush()

        return self.watch.at("write", self.path, lambda: self.file.write(content), tear)

    def __enter__(self) -> "_Torn":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def watched(out: Path, plant: Callable[[], Any] = lambda: None) -> list[Event]:
    """The unbroken run, and every call of it that changes its folder."""
    log = out.with_name(f"{out.name}.events")

    def job() -> None:
        plant()
        Watch(out, log=log).install()
        forked.train(out)

    said = out.with_name(f"{out.name}.log")
    assert forked.run(job, said) == 0, said.read_text()
    return [eval(line) for line in log.read_text().splitlines()]


def aims(events: list[Event], number: int, draw: random.Random) -> list[Aim]:
    """Aims at every stage, at a random one of its calls, then at further moments of random calls."""
    calls: dict[str, list[int]] = {}
    for i, event in enumerate(events, 1):
        calls.setdefault(event.stage, []).append(i)
    moments = {stage: ["in", "after", "before"] if events[of[0] - 1].torn else ["after", "before"]
               for stage, of in calls.items()}  # fmt: skip
    first = [(stage, whens.pop(0)) for stage, whens in moments.items()]
    rest = [(stage, when) for stage, whens in moments.items() for when in whens]
    draw.shuffle(rest)
    wanted = [*first, *rest]
    while len(wanted) < number:
        wanted.append(draw.choice(wanted))
    return [Aim(draw.choice(calls[stage]), when, draw.random()) for stage, when in wanted[:number]]


def attempt(out: Path, aim: Aim | float | None, plant: Callable[[], Any] = lambda: None) -> int:
    """Begin or resume the run and kill it at an aim, or after seconds; its exit code."""

    def job() -> None:
        plant()
        if isinstance(aim, Aim):
            Watch(out, aim).install()
        forked.train(out)

    pid = forked.fork(job, out.with_name(f"{out.name}.log"))
    if isinstance(aim, float):
        time.sleep(aim)
        os.kill(pid, signal.SIGKILL)  # the fork is not waited for yet, so its number is its own
    return forked.wait(pid)


def outlives(
    out: Path, kills: list[Aim | float], whole: Path, plant: Callable[[], Any] = lambda: None
) -> tuple[bool, list[str]]:
    """Kill a run, its resumption too where there is a second aim, and finish it: was it killed, and what is wrong."""
    codes = [attempt(out, kill, plant) for kill in kills]
    code = attempt(out, None, plant)
    said = out.with_name(f"{out.name}.log")
    faults = [] if code == 0 else [f"did not resume ({code}): {said.read_text()[-300:]}"]
    if any(found not in (0, -signal.SIGKILL) for found in codes):
        faults.append(f"ended by {codes}: {said.read_text()[-300:]}")
    faults += forked.differs(out, whole)
    shutil.rmtree(out, ignore_errors=True)
    return codes[0] == -signal.SIGKILL, faults


class Naive(checkpoint.Checkpointer):
    """The control: one file, written in place by torch.save; dies inside the write of its ``number``-th checkpoint."""

    number, share, written = 0, 0.5, 0

    def load_newest(self, tell: Callable[[str], None]) -> Any:
        """What is there, as many scripts do."""
        path = self.folder / "live.pt"
        return torch.load(path) if path.exists() else None

    def save(self, step: int, checkpoint: Any, best: Any) -> None:
        """Onto the live file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "live.pt"
        cls = type(self)
        cls.written += 1
        if cls.written == cls.number:
            content = io.BytesIO()
            torch.save((step, checkpoint), content)
            path.write_bytes(content.getvalue()[: int(cls.share * len(content.getvalue()))])
            die()
        torch.save((step, checkpoint), path)


def naively_lost(out: Path, number: int, share: float) -> bool:
    """Whether a run of the naive saver, killed inside its ``number``-th write, cannot be resumed."""

    def plant(number: int) -> Callable[[], None]:
        def put() -> None:
            Naive.number, Naive.share, Naive.written = number, share, 0
            run.Checkpointer = Naive  # type: ignore[misc]

        return put

    assert attempt(out, None, plant(number)) == -signal.SIGKILL
    lost = attempt(out, None, plant(0)) != 0
    shutil.rmtree(out, ignore_errors=True)
    return lost


def unsynced(events: list[Event]) -> list[str]:
    """What a power cut could lose: names given, or older ones removed, before what they stand for is on the disk."""
    faults, dirty = [], dict[str, int]()
    for number, event in enumerate(events, 1):
        inside = [path for path in dirty if path == event.path or path.startswith(f"{event.path}/")]
        if event.what == "write":
            dirty[event.path] = number
        elif event.what == "mkdir" and event.path != ".":
            dirty[str(Path(event.path).parent)] = number
        elif event.what == "fsync":
            dirty.pop(event.path, None)
        elif event.what in ("rename", "replace"):
            above = [str(path) for path in Path(event.to).parents[1:] if str(path) in dirty and ".tmp-" not in event.to]
            if not Path(event.to).name.startswith(".tmp-"):
                faults += [f"{number}: {event.to} gets its name while {path} is not synced" for path in inside + above]
            elif dirty:
                faults.append(f"{number}: {event.path} is given up while {', '.join(dirty)} are not synced")
            for path in inside:
                del dirty[path]
            dirty[str(Path(event.to).parent)] = number
    return [*faults, *(f"never synced: {path}" for path in dirty)]


def main(num_random: int = 60, num_aimed: int = 60, num_naive: int = 30) -> None:
    """All of it, into docs/results/reliability.md."""
    start = time.monotonic()
    draw = random.Random(SEED)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = folder / "whole"
        events = watched(whole)
        stages = {event.stage for event in events}
        began = time.monotonic()
        side = forked.side_by_side(lambda i: attempt(folder / f"time{i}", None), range(2), folder / "times")
        assert side == [0, 0]
        took = time.monotonic() - began
        aimed = aims(events, num_aimed, draw)
        cases: list[tuple[str, list[Aim | float]]] = []
        for i in range(num_random + num_aimed):
            kills: list[Aim | float] = [draw.uniform(0, took) if i < num_random else aimed[i - num_random]]
            if i % 3 == 0:  # the resumed run is killed too
                kills.append(Aim(draw.randrange(1, 40), draw.choice(["before", "in", "after"]), draw.random()))
            cases.append((f"run{i}", kills))

        def one(case: tuple[str, list[Aim | float]]) -> tuple[int, list[str]]:
            tries = 0
            while True:
                out = folder / case[0]
                killed, faults = outlives(out, case[1], whole)
                tries += 1
                if killed or faults or not isinstance(case[1][0], float) or tries == 9:
                    return tries, faults if killed else [*faults, "was not killed"]
                case[1][0] = random.Random(f"{case[0]} {tries}").uniform(0, took * 0.8)  # it was faster than that

        found = forked.side_by_side(one, cases, folder / "found")
        bad = {case[0]: (str(case[1]), faults) for case, (_, faults) in zip(cases, found, strict=True) if faults}
        good = len(cases) - len(bad)
        hit = {events[aim.number - 1].stage for aim in aimed}
        record(
            "kill",
            what=f"`glocal train` killed by SIGKILL at {num_random} random and {num_aimed} targeted moments "
            f"({len(hit)} of the {len(stages)} kinds of calls that change its folder), every third killed again, and "
            "resumed: final weights bit-identical, rows of metrics.csv and scores equal, no files left over",
            asked=f"{len(cases)} of {len(cases)}",
            found=f"{good} of {len(cases)}",
            holds=good == len(cases) and hit == stages,
            seed=SEED,
            seconds=time.monotonic() - start,
            stages=sorted(stages),
            drawn_again=sum(tries - 1 for tries, _ in found),
            faults=bad,
        )
        start = time.monotonic()
        naive = [(folder / f"naive{i}", draw.randrange(1, 5), draw.uniform(0.0, 1.0)) for i in range(num_naive)]
        lost = sum(forked.side_by_side(lambda case: naively_lost(*case), naive, folder / "lost"))
        record(
            "kill-control",
            what="control of `kill`: the same run with checkpoints overwritten in place by torch.save, killed during "
            "the write: runs that cannot be resumed",
            asked="nearly all",
            found=f"{lost} of {num_naive}",
            holds=lost >= 0.9 * num_naive,
            seed=SEED,
            seconds=time.monotonic() - start,
        )
        faults = unsynced(events)
        record(
            "power-cut",
            what=f"order of the {len(events)} calls of a run that change its folder: no file is renamed into place, "
            "and no older one removed, before its content is synced (a power cut loses unsynced content, SIGKILL does "
            "not)",
            asked="0 exceptions",
            found=f"{len(faults)} exceptions",
            holds=not faults,
            seed=None,
            seconds=0.0,
            faults=faults,
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
