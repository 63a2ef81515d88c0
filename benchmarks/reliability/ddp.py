"""Kill one of two processes that train together: the other ends too, nothing is left, and 2 or 1 processes go on.

    python benchmarks/reliability/ddp.py [ddp] [torchrun] [fsdp]     all by default

On CPU with gloo, through the command, its batches watched (`watched.py`).
"""

import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from benchmarks.reliability import forked, watched
from benchmarks.reliability.kill import die
from benchmarks.reliability.record import record
from safetensors.torch import load_file
from tests.shapes import write_folder

from glocal.training import TrainConfig, run
from glocal.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
SEED = 0
GONE = 60.0
"""Seconds within which the survivors must be gone."""
RECIPE = TrainConfig.of(
    epochs=4, batch_size=8, lr=1e-2, image_size=32, flip=False, log_every_steps=1, checkpoint_every_steps=4
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where the data and the recipe of these runs are."""

    folder: Path

    def make(self) -> "Place":
        """Write them."""
        write_folder(self.folder / "data", num_images=60)
        (self.folder / "recipe.yaml").write_text(RECIPE.to_yaml())
        return self

    def arguments(self, out: Path, *more: str, model: str = "resnet_micro") -> list[str]:
        """Of the command; ``--resume`` begins a run too."""
        here = ["train", str(self.folder / "data"), "--model", model, "--recipe", str(self.folder / "recipe.yaml")]
        return [*here, "--out", str(out), "--device", "cpu", "--workers", "0", "--resume", *more]


WATCHED = "benchmarks.reliability.watched"


def start(launcher: list[str], arguments: list[str], log: Path, module: str = WATCHED) -> subprocess.Popen:
    """The command in processes of its own; they are found by their environment, whatever session they are in."""
    environment = {**os.environ, watched.LOG: str(log), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log.with_suffix(".said").open("a") as said:
        return subprocess.Popen(
            [sys.executable, *launcher, "-m", module, *arguments],
            cwd=ROOT, env=environment, stdout=said, stderr=said, start_new_session=True,
        )  # fmt: skip


def alive(log: Path, *also: bytes) -> list[int]:
    """Processes that a start with this log has left, by their environment."""
    marks, found = {f"{watched.LOG}={log}".encode(), *also}, []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if marks <= set((entry / "environ").read_bytes().split(b"\0")):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@contextmanager
def patched_environment(name: str, value: str) -> Iterator[None]:
    """A variable for what is started inside."""
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


def until(condition: Callable[[], Any], limit: float = 200.0) -> Any:
    """What a condition gives, once it gives something."""
    deadline = time.monotonic() + limit
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.01)
    return found


def survivors(log: Path, process: subprocess.Popen) -> float:
    """Seconds until nothing is left of a start; infinity if that takes too long, and then it is killed."""
    began = time.monotonic()
    while process.poll() is None or alive(log):
        if time.monotonic() - began > GONE:
            for pid in alive(log):
                os.kill(pid, signal.SIGKILL)
            process.wait()
            return math.inf
        time.sleep(0.02)
    return time.monotonic() - began


def together(arguments: list[str], log: Path, world: int, plant: Callable[[], Any] = lambda: None) -> list[int]:
    """The command in forks that stand as torchrun would start them; their exit codes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    def job(rank: int) -> Callable[[], None]:
        def work() -> None:
            if world > 1:
                os.environ.update({
                    "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "GROUP_RANK": "0",
                    "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                    "TORCHELASTIC_RUN_ID": "forked",
                })  # fmt: skip
            watched.watch(log)
            plant()
            forked.command(*arguments)

        return work

    pids = [forked.fork(job(rank), log.with_suffix(".said")) for rank in range(world)]
    codes: dict[int, int] = {}
    deadline = time.monotonic() + forked.LIMIT
    while len(codes) < world:
        for pid in pids:
            if pid not in codes and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                codes[pid] = forked.wait(pid)
                if codes[pid]:  # torchrun would end the other now
                    deadline = min(deadline, time.monotonic() + GONE)
        if time.monotonic() > deadline:
            for pid in set(pids) - set(codes):
                os.kill(pid, signal.SIGUSR1)  # says where it hangs
                time.sleep(1)
                os.kill(pid, signal.SIGKILL)
            deadline = math.inf
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


def merged(lines: list[dict[str, Any]], world: int) -> dict[int, list[int]]:
    """By step: its images in the order of the whole step, of which each process has every ``world``-th."""
    parts: dict[int, dict[int, list[int]]] = {}
    for line in lines:
        parts.setdefault(line["step"], {})[line["rank"]] = line["pixels"]
    whole = {step: of for step, of in parts.items() if len(of) == world}
    return {step: [of[i % world][i // world] for i in range(sum(map(len, of.values())))] for step, of in whole.items()}


def goes_on(
    place: Place, out: Path, before: list[dict[str, Any]], expected: dict[int, list[int]], world: int, *more: str
) -> list[str]:
    """Resume a copy of a run on some processes: are its images, before and after, those of one process?"""
    log = out.with_name(f"{out.name}.again{world}")
    copy = out.with_name(f"{out.name}.on{world}")
    shutil.copytree(out, copy)
    kept = max((int(p.name[5:]) for p in (copy / "checkpoints").glob("step-*")), default=0)
    if more:  # as a person would: with processes that it starts itself
        process = start([], place.arguments(copy, *more), log)
        codes = [process.wait(300)]
    else:
        codes = together(place.arguments(copy), log, world)
    faults = [] if not any(codes) else [f"on {world}: {codes}: {log.with_suffix('.said').read_text()[-300:]}"]
    order = {step: images for step, images in merged(before, 2).items() if step < kept}
    after = merged(watched.read(log), world)
    if list(after) != list(range(kept, len(expected))):
        faults.append(f"on {world}: steps {list(after)} after a checkpoint of step {kept}")
    if order | after != expected:
        faults.append(f"on {world}: other images than one process has")
    if not (copy / "results.json").exists():
        faults.append(f"on {world}: did not finish")
    faults += [f"left behind: {path.name}" for path in copy.rglob("*tmp-*")]
    return faults


def kill_one(place: Place, name: str, rank: int, step: int | None, launcher: list[str]) -> tuple[float, list[Any]]:
    """Start two processes and kill one, in a step or while the second is starting: seconds until nothing is left."""
    out, log = place.folder / name, place.folder / f"{name}.order"
    process = start(launcher, place.arguments(out, *([] if launcher else ["--devices", "2"])), log)
    if step is None:
        second = until(lambda: alive(log, b"LOCAL_RANK=1"))[0]
        time.sleep(1.0)  # it is importing
        os.kill(second if rank else process.pid, signal.SIGKILL)
    else:
        line = until(lambda: [x for x in watched.read(log) if x["rank"] == rank and x["step"] >= step])[0]
        os.kill(line["pid"], signal.SIGKILL)
    seconds = survivors(log, process)
    lines = watched.read(log)
    faults: list[Any] = [] if seconds < GONE else ["was not gone"]
    if (rank or launcher) and process.returncode == 0:
        faults.append("the survivor says that it has finished")
    ours = launcher == [] and rank and step is not None
    if ours and "--resume continues" not in log.with_suffix(".said").read_text():
        faults.append(f"it does not say what to do: {log.with_suffix('.said').read_text()[-300:]}")
    return seconds, [faults, lines, process.returncode]


def stopped(place: Place, name: str, number: signal.Signals, everybody: bool) -> tuple[float, int]:
    """Signal a start of two processes while the second is starting: seconds until nothing is left, and the exit code.

    Ctrl-C goes to everybody in the terminal, SIGTERM of a scheduler to the first alone.
    """
    log = place.folder / f"{name}.order"
    process = start([], place.arguments(place.folder / name, "--devices", "2"), log, "glocal")
    until(lambda: alive(log, b"LOCAL_RANK=1"))
    time.sleep(2.0)
    (os.killpg if everybody else os.kill)(process.pid, number)
    return survivors(log, process), process.returncode


def ddp(place: Place) -> None:
    """Kills of `glocal train --devices 2`."""
    began = time.monotonic()
    draw = random.Random(SEED)
    one = place.folder / "one"
    assert together(place.arguments(one), place.folder / "one.order", 1) == [0]
    expected = merged(watched.read(place.folder / "one.order"), 1)
    steps = len(expected)
    cases: list[tuple[int, int | None]] = [(1, draw.randrange(5, steps - 2)), (0, draw.randrange(5, steps - 2))]
    cases += [(1, draw.randrange(5, steps - 2)), (0, None), (1, None)]
    took, codes, faults = [], [], dict[str, list[str]]()
    for i, (rank, step) in enumerate(cases):
        seconds, (wrong, lines, code) = kill_one(place, f"kill{i}", rank, step, [])
        took.append(seconds)
        codes.append(code)
        out = place.folder / f"kill{i}"
        wrong += goes_on(place, out, lines, expected, 2, *(("--devices", "2") if i == 0 else ()))
        wrong += goes_on(place, out, lines, expected, 1)
        if wrong:
            faults[f"rank {rank} at {step}"] = wrong
    stops, bad = {}, len(faults)
    for number, everybody in ((signal.SIGINT, True), (signal.SIGTERM, False)):
        seconds, code = stopped(place, f"stop{number}", number, everybody)
        stops[number.name] = {"seconds": seconds, "code": code}
        if code != 75 or seconds > GONE:
            said = (place.folder / f"stop{number}.said").read_text()[-300:]
            faults[f"{number.name} while the second starts"] = [f"exit code {code} after {seconds:.0f} s: {said}"]
    with patched_environment(watched.CARELESS, "1"):
        control = kill_one(place, "control", 0, None, [])[0]
    slowest = max(took)
    record(
        "ddp",
        what="one of the 2 processes of `glocal train --devices 2` (CPU, gloo) killed by SIGKILL, three times in a "
        "step, twice during the start of the second: the other ends too, no orphan; resumed on 2 and on 1 processes: "
        "same global order of images as one process, finished; Ctrl-C and SIGTERM during the start of the second: "
        "exit code 75",
        asked=f"5 of 5 within {GONE:.0f} s",
        found=f"{len(cases) - bad} of {len(cases)}, slowest {slowest:.1f} s; {len(stops) + bad - len(faults)} of "
        f"{len(stops)} stops; control without the check for the parent process detected: "
        f"{'yes' if control > GONE else 'no'}",
        holds=not faults and control > GONE,
        seed=SEED,
        seconds=time.monotonic() - began,
        survivors_gone_s=[round(seconds, 2) for seconds in took],
        exit_codes=codes,
        stops=stops,
        faults=faults,
    )


def torchrun(place: Place) -> None:
    """A kill under torchrun."""
    began = time.monotonic()
    one = place.folder / "single"
    assert together(place.arguments(one), place.folder / "single.order", 1) == [0]
    expected = merged(watched.read(place.folder / "single.order"), 1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    seconds, (faults, lines, code) = kill_one(place, "elastic", 1, 9, launcher)
    out, log = place.folder / "elastic", place.folder / "elastic.again"
    kept = max(int(p.name[5:]) for p in (out / "checkpoints").glob("step-*"))
    again = start(launcher, place.arguments(out), log)
    if again.wait(300):
        faults.append(f"did not resume: {log.with_suffix('.said').read_text()[-500:]}")
    order = {step: images for step, images in merged(lines, 2).items() if step < kept}
    if order | merged(watched.read(log), 2) != expected:
        faults.append("other images than one process has")
    if not (out / "results.json").exists():
        faults.append("did not finish")
    record(
        "torchrun",
        what="a worker of `torchrun --nproc-per-node 2 -m glocal train` (CPU, gloo) killed by SIGKILL: the agent and "
        "the other worker end too, no orphan; restarted: same global order of images as one process, finished",
        asked=f"within {GONE:.0f} s",
        found=f"ended after {seconds:.1f} s, exit code {code}; {'resumed' if not faults else 'not as asked'}",
        holds=not faults,
        seed=None,
        seconds=time.monotonic() - began,
        faults=faults,
    )


def die_at(step: int) -> Callable[[], None]:
    """Death of this process after it has saved in a step."""

    def plant() -> None:
        save = Trainer._save

        def saved(self: Any) -> None:
            save(self)
            if self.state.step >= step:
                die()

        Trainer._save = saved  # type: ignore[method-assign]

    return plant


def die_at_the_end() -> None:
    """Death of this process when all is trained and saved, before the results are written."""
    run._results = lambda *_: die()  # type: ignore[assignment, func-returns-value]


def distance(one: Path, other: Path) -> float:
    """Relative distance of two runs' final weights: norm of the difference over the norm."""
    a, b = (load_file(path / "model.safetensors") for path in (one, other))
    pairs = [(a[name].double(), b[name].double()) for name in a]
    return math.sqrt(sum(float(((x - y) ** 2).sum()) for x, y in pairs) / sum(float((y**2).sum()) for _, y in pairs))


def fsdp(place: Place) -> None:
    """Parameters split over two processes: saved on 2, resumed on 1, and the other way round."""
    began = time.monotonic()
    arguments = lambda name: place.arguments(place.folder / name, "--strategy", "fsdp", model="vit_micro")  # noqa: E731
    faults, log = [], place.folder / "fsdp.order"
    logs = lambda name: log.with_name(f"{name}.order")  # noqa: E731
    for name, world in (("fsdp1", 1), ("fsdp2", 2)):
        if any(codes := together(arguments(name), logs(name), world)):
            faults.append(f"{name}: {codes}: {logs(name).with_suffix('.said').read_text()[-500:]}")
    cases = (
        ("2 to 1", 2, 1, die_at(8)), ("1 to 2", 1, 2, die_at(8)), ("2 to 2", 2, 2, die_at(8)),
        ("2 at the end", 2, 2, die_at_the_end),
    )  # fmt: skip
    apart = {"2 to one process": distance(place.folder / "fsdp2", place.folder / "fsdp1")}
    expected = merged(watched.read(logs("fsdp1")), 1)
    for name, first, second, plant in cases:
        out = f"fsdp {name}".replace(" ", "-")
        killed = together(arguments(out), logs(out), first, plant)
        if killed != [-signal.SIGKILL] * first:
            faults.append(f"{name}: was not killed: {killed}")
        before = merged(watched.read(logs(out)), first)
        if any(codes := together(arguments(out), logs(f"{out}-again"), second)):
            faults.append(f"{name}: {codes}: {logs(f'{out}-again').with_suffix('.said').read_text()[-500:]}")
            continue
        if before | merged(watched.read(logs(f"{out}-again")), second) != expected:
            faults.append(f"{name}: other images than one process has")
        apart[name] = distance(place.folder / out, place.folder / f"fsdp{first}")
    close = max(apart.values())
    record(
        "fsdp",
        what="`--strategy fsdp` (CPU, gloo, vit_micro) killed after a checkpoint on 2 processes and resumed on 1, and "
        "vice versa: the same images, final weights close to those of an uninterrupted run (norm of the difference "
        "over the norm)",
        asked="below 0.01",
        found=", ".join(f"{name}: {of:.1e}" if of else f"{name}: equal" for name, of in apart.items()),
        holds=not faults and close < 0.01,
        seed=0,
        seconds=time.monotonic() - began,
        faults=faults,
    )


def main(*parts: str) -> None:
    """All of it, into docs/results/reliability.md."""
    torch.set_num_threads(1)
    for part in parts or ("ddp", "torchrun", "fsdp"):
        with tempfile.TemporaryDirectory() as name:
            {"ddp": ddp, "torchrun": torchrun, "fsdp": fsdp}[part](Place(Path(name)).make())


if __name__ == "__main__":
    main(*sys.argv[1:])
