"""Train the same models with a reference commit's code and with this checkout's, and compare every number.

    python benchmarks/same_bits.py                             against the commit BASE
    python benchmarks/same_bits.py --base REV | --base-path DIR
    python benchmarks/same_bits.py --only train-resnet,resume --seeds 1 --out /tmp/found

The proof that a refactor of the training code changes no number. Only the command line is used, so the code behind it
may move freely: it must take the same options and write the same files. Writes same-bits.md and same-bits.json; exit
code 1 if a bound is broken. Takes about ten minutes on two free CPU cores.

Of each run are compared: every tensor of its safetensors files, metrics.csv and results.json. Not compared: times, the
machine, the command, and the recipe as written (its keys may be renamed; what they do shows in the weights). A new
column or key is noted; one that is gone counts as a difference.
"""

import argparse
import csv
import json
import math
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
BASE = "1d3bb94"
LIMIT = 900.0
"""Seconds that a command may take."""
BF16_BOUND, FSDP_BOUND = 1e-3, 1e-3
"""Largest relative distance of the weights: norm of the difference over norm."""
RUN_BY_RUN = ("command", "created", "environment", "glocal")
"""Keys of results.json that say where and how, not what was found."""
NOT_COMPARED = (
    *RUN_BY_RUN, "seconds", "seconds_to_budget", "images_per_s", "train_images_per_s", "latency_ms_b1",
    "images_per_s_b8", "images_per_s_b32", "peak_memory_mib", "jobs", "fastest",
    "sentence",  # of the verdict: names latencies
    "recipe",
    "weights",  # the digest of a file with its header, or its path; the tensors are compared themselves
)  # fmt: skip
"""Keys of results.json, at any depth, that are not compared; and columns of metrics.csv."""

RENAMED = {"accumulate": "grad_accum_steps", "repeats": "aug_repeats"}
"""Settings of a recipe by the names that the base has for them."""

# Many commands in one process: importing torch takes longer than most of these runs. Each command has a log of its own,
# at the level of file descriptors: data-loading workers write there too.
DRIVER = """
import json, os, sys, traceback
import glocal.cli

for arguments, log in json.load(open(sys.argv[1])):
    sys.stdout.flush(), sys.stderr.flush()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1), os.dup2(file, 2), os.close(file)
    sys.argv, code = ["glocal", *arguments], 0
    try:
        glocal.cli.main()
    except SystemExit as exit:
        code = exit.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    open(log[: -len(".log")] + ".code", "w").write(str(code))
    if code in (75, 130):  # stopped by a signal to all of us
        break
"""


@dataclass(frozen=True)
class Build:
    """A source tree, and the folder in which its runs are."""

    name: str
    source: Path
    work: Path
    commit: str


Arguments = list[str]


@dataclass(frozen=True)
class Case:
    """What is trained by both builds, and how close the results must be.

    Attributes:
        name: for --only; names the folder of its runs.
        what: for the table.
        commands: of a seed; the runs go into the given folder.
        alone: each command needs a process of its own, because it starts others.
        bound: largest relative distance of the weights; 0 asks for equal bits in all files.
        once: all seeds are in one command.
        needs: cases whose runs this one uses.
    """

    name: str
    what: str
    commands: Callable[[Path, int], list[Arguments]] = lambda folder, seed: []
    alone: bool = False
    bound: float = 0.0
    once: bool = False
    needs: tuple[str, ...] = ()

    def parts(self, seeds: int) -> list[str]:
        """Folders of its runs: one a seed."""
        return ["all"] if self.once else [f"s{seed}" for seed in range(seeds)]


def settings(**recipe: Any) -> Arguments:
    """``-s key=value`` of each setting of a recipe."""
    return [word for key, value in recipe.items() for word in ("-s", f"{key}={value}")]


def train(
    model: str, out: Path, seed: int, *more: str, data: str = "fashion-mini", task: Sequence[str] = (), workers: int = 0
) -> Arguments:
    """A training run on the CPU, every step in metrics.csv."""
    return [
        *task, "train", data, "--model", model, "--out", str(out), "--seed", str(seed), "--device", "cpu",
        "--workers", str(workers), *settings(log_every_steps=1), *more,
    ]  # fmt: skip


def one_run(model: str, *more: str, **options: Any) -> Callable[[Path, int], list[Arguments]]:
    """A training run a seed; arguments as of `train`."""
    return lambda folder, seed: [train(model, folder / "run", seed, *more, **options)]


# fashion-mini has 313 steps of 32 images in an epoch, items-on-photos 600 steps of 8
EMA_MIXUP = settings(
    epochs=0.12, evaluate_every_epochs=0.06, augment="light", mixup=0.2, ema=0.9, accumulate=2, clip_grad=0.5
)
SGD_CUTMIX = settings(
    epochs=0.1, optimizer="momentum", lr=0.02, schedule="step", augment="randaugment", random_erasing=0.25, repeats=2,
    cutmix=1.0, drop_path=0.1, layer_decay=0.8, class_balance=0.5, clip_grad=0,
)  # fmt: skip
# no EMA: at the commit BASE, DDP stops with it, as it takes the averaged copy for parameters without a gradient
DDP = settings(epochs=0.06, augment="light", mixup=0.2, accumulate=2)
SHORT = settings(epochs=0.06, ema=0.9)
RESUMED = settings(
    epochs=0.25,
    evaluate_every_epochs=0.125,
    augment="light",
    mixup=0.2,
    ema=0.9,
    accumulate=2,
    checkpoint_every_steps=10,
)
TINY = settings(image_size=64, epochs=0.015)
DETECTOR = ["--detector", "faster_rcnn", *TINY, *settings(ema=0.5)]
SEGMENTER = ["--segmenter", "semantic_fpn", *TINY, *settings(augment="light", accumulate=2)]


def finetune(folder: Path, seed: int) -> list[Arguments]:
    """A classifier, finetuned, and a linear probe on it."""
    weights = ["--weights", str(folder / "scratch/model.safetensors")]
    return [
        train("resnet_micro", folder / "scratch", seed, *settings(epochs=0.03)),
        train("resnet_micro", folder / "finetune", seed + 100, *weights, *settings(epochs=0.03)),
        train("resnet_micro", folder / "probe", seed + 100, *weights, "--freeze", "backbone", *settings(epochs=0.03)),
    ]


def compare(name: str, what: str, seeds: int, *more: str) -> Case:
    """Two models, all seeds in one command, which starts processes."""
    usual = ["--models", "resnet_micro,vit_micro", "--device", "cpu", "--seeds", str(seeds)]
    commands = lambda folder, _: [["compare", *more, *usual, "--out", str(folder / "compared")]]  # noqa: E731
    return Case(name, what, commands, alone=True, once=True)


def evaluate(work: Path) -> Callable[[Path, int], list[Arguments]]:
    """What the base build has saved."""

    def commands(folder: Path, seed: int) -> list[Arguments]:
        found = []
        for name, command, data in (
            ("train-resnet", ["eval"], "fashion-mini"),
            ("detect", ["detect", "eval"], "items-on-photos"),
            ("segment", ["segment", "eval"], "items-on-photos"),
        ):
            saved, out = work / "base" / name / f"s{seed}" / "run", folder / f"{name}-eval.json"
            found.append([*command, str(saved), data, "--device", "cpu", "--out", str(out)])
        return found

    return commands


def cases(seeds: int, work: Path) -> list[Case]:
    """All of them, in the order of the table."""
    two = ("--devices", "2")
    fp16 = ("--device", "cuda", "--precision", "fp16")
    return [
        Case(
            "train-resnet",
            "`train` resnet_micro, 38 steps: light augmentation, mixup, EMA, 2 gradient accumulation steps, clipping, "
            "2 evaluations",
            one_run("resnet_micro", *EMA_MIXUP),
        ),
        Case(
            "train-vit",
            "`train` vit_micro, 31 steps, 1 data-loading worker: RandAugment, repeats, erasing, CutMix, drop path, "
            "layer decay, class balance, SGD with milestones",
            one_run("vit_micro", *SGD_CUTMIX, workers=1),
        ),
        Case(
            "finetune",
            "`train` resnet_micro, then `--weights` of it: finetuned, and a linear probe; 9 steps each",
            finetune,
        ),
        Case(
            "detect",
            "`detect train` faster_rcnn on resnet_micro, 9 steps, EMA",
            one_run("resnet_micro", *DETECTOR, data="items-on-photos", task=["detect"]),
        ),
        Case(
            "segment",
            "`segment train` semantic_fpn on resnet_micro, 9 steps, 2 accumulation steps",
            one_run("resnet_micro", *SEGMENTER, data="items-on-photos", task=["segment"]),
        ),
        compare(
            "compare",
            "`compare` resnet_micro and vit_micro, 15 steps: weights, predictions, statistics",
            seeds,
            *("fashion-mini", "--budget", "0.05ep"),
        ),
        compare(
            "compare-detect",
            "`compare --task detect` resnet_micro and vit_micro, 3 steps, 1 seed",
            1,
            *("items-on-photos", "--task", "detect", "--image-size", "64", "--budget", "0.005ep"),
        ),
        Case(
            "ddp",
            "`train --devices 2` resnet_micro, DDP with gloo, 19 steps: augmentation, mixup, 2 accumulation steps",
            one_run("resnet_micro", *DDP, *two),
            alone=True,
        ),
        Case(
            "bf16",
            "`train --precision bf16` vit_micro, 19 steps, EMA",
            one_run("vit_micro", *SHORT, "--precision", "bf16"),
            bound=BF16_BOUND,
        ),
        Case(
            "fp16",
            "`train --precision fp16` vit_micro on a GPU, 19 steps, EMA",
            one_run("vit_micro", *SHORT, *fp16),
            bound=BF16_BOUND,
        ),
        Case(
            "fsdp",
            "`train --devices 2 --strategy fsdp` vit_micro, FSDP2 with gloo, 19 steps, EMA",
            one_run("vit_micro", *SHORT, *two, "--strategy", "fsdp"),
            alone=True,
            bound=FSDP_BOUND,
        ),
        Case(
            "resume",
            "a run of the base, stopped by SIGTERM after a checkpoint, resumed by this checkout: against the "
            "uninterrupted run of the base",
            one_run("resnet_micro", *RESUMED),
        ),
        Case(
            "eval",
            "`eval`, `detect eval`, `segment eval` of models that the base has saved",
            evaluate(work),
            needs=("train-resnet", "detect", "segment"),
        ),
        Case(
            "compare-resume",
            "`compare --resume` of a finished comparison of the base by this checkout rewrites its results.json, with "
            "the times it had",
            once=True,
            needs=("compare",),
        ),
    ]


class Commands:
    """Runs the commands of one build, one after the other.

    Args:
        build: whose code runs.
    """

    def __init__(self, build: Build) -> None:
        self.build = build
        self.processes: list[subprocess.Popen] = []
        self.stopped = False
        self.environment = {
            **os.environ,
            "PYTHONPATH": f"{build.source / 'src'}{os.pathsep}{build.source}",
            "PYTHONDONTWRITEBYTECODE": "1",  # leaves nothing in a reference checkout
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }

    def check_source(self) -> None:
        """An editable install must not win over the build's own code."""
        found = subprocess.run(
            [sys.executable, "-c", "import glocal; print(glocal.__file__)"],
            env=self.environment, cwd=self.build.work, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        if not Path(found.strip()).resolve().is_relative_to((self.build.source / "src").resolve()):
            raise SystemExit(f"{self.build.name}: expected glocal of {self.build.source}, got {found.strip()}")

    def start(self, arguments: Arguments, log: Path) -> subprocess.Popen:
        """A Python process."""
        if self.stopped:
            raise KeyboardInterrupt
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                env=self.environment, cwd=self.build.work, stdout=file, stderr=file,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def stop(self) -> None:
        """Leave no process behind."""
        self.stopped = True
        for process in self.processes:
            process.kill()

    def finish(self, process: subprocess.Popen, limit: float) -> int:
        """Exit code of a process; one that takes too long is killed, and those that it has started end with it."""
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def run_alone(self, arguments: Arguments, log: Path) -> int:
        """A command in a process of its own."""
        code = self.finish(self.start(["-m", "glocal", *arguments], log), LIMIT)
        log.with_suffix(".code").write_text(str(code))
        return code

    def run_driver(self, commands: Sequence[tuple[Arguments, Path]]) -> None:
        """Commands in one process."""
        if not commands:
            return
        for _, log in commands:
            log.parent.mkdir(parents=True, exist_ok=True)
        listed = self.build.work / "commands.json"
        listed.write_text(json.dumps([(arguments, str(log)) for arguments, log in commands]))
        # a command that did not end has no exit code, and is found by that
        driver = self.start(["-c", DRIVER, str(listed)], self.build.work / "driver.log")
        self.finish(driver, LIMIT * len(commands))

    def run_cases(self, chosen: Sequence[Case], seeds: int) -> None:
        """All commands of cases."""
        together, alone = [], []
        for case in chosen:
            for seed, part in enumerate(case.parts(seeds)):
                folder = self.build.work / case.name / part
                for number, arguments in enumerate(case.commands(folder, seed)):
                    (alone if case.alone else together).append((arguments, folder / f"{number}.log"))
        self.run_driver(together)
        for arguments, log in alone:
            if self.run_alone(arguments, log) in (75, 130, -signal.SIGINT):
                break


def stop_and_resume(base: Commands, this: Commands, case: Case, seeds: int) -> dict[str, str]:
    """Stop runs of the base, and resume them with this checkout; where each was stopped, by part."""
    moments, resumed = {}, []
    for seed, part in enumerate(case.parts(seeds)):
        stopped, folder = base.build.work / "stopped" / part, this.build.work / case.name / part
        (arguments,) = case.commands(stopped, seed)
        process = base.start(["-m", "glocal", *arguments], stopped / "0.log")
        deadline = time.monotonic() + LIMIT
        while process.poll() is None and not any(stopped.glob("run/checkpoints/step-*")):
            if time.monotonic() > deadline:
                process.kill()
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        if (code := process.wait(LIMIT)) != 75:
            folder.mkdir(parents=True)
            shutil.copy(stopped / "0.log", folder)
            (folder / "0.code").write_text(f"{code} where 75, stopped, was expected")
            continue
        moments[part] = str(max(int(path.name[5:]) for path in stopped.glob("run/checkpoints/step-*")))
        shutil.copytree(stopped / "run", folder / "run")
        (arguments,) = case.commands(folder, seed)
        resumed.append(([*arguments, "--resume"], folder / "0.log"))
    this.run_driver(resumed)
    return moments


def resume_comparison(base: Commands, this: Commands, seeds: int, work: Path) -> None:
    """Resume a copy of a finished comparison of the base with this checkout."""
    case = next(case for case in cases(seeds, work) if case.name == "compare")
    folder = this.build.work / "compare-resume/all"
    shutil.copytree(base.build.work / "compare/all", folder, ignore=shutil.ignore_patterns("*.log", "*.code"))
    (arguments,) = case.commands(folder, 0)
    this.run_alone([*arguments, "--resume"], folder / "0.log")


@dataclass
class Differences:
    """What two folders of runs do not share.

    Attributes:
        weights: of tensors, each a sentence.
        numbers: of metrics.csv and JSON files, each a sentence.
        faults: files that are missing and commands that failed.
        more: columns and keys that only this checkout writes.
        tensors, cells: how many were compared.
        distance: largest relative distance of the tensors of a file.
    """

    weights: list[str] = field(default_factory=list)
    numbers: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    more: list[str] = field(default_factory=list)
    tensors: int = 0
    cells: int = 0
    distance: float = 0.0

    def holds(self, bound: float) -> bool:
        """Whether the folders are as close as asked."""
        if self.faults or not self.tensors + self.cells:
            return False
        return self.distance <= bound if bound else not self.weights and not self.numbers


def compare_folders(base: Path, this: Path, ignored: Sequence[str]) -> Differences:
    """Compare the safetensors, metrics.csv and JSON results of all runs in two folders."""
    found = Differences()
    for side, folder in (("base", base), ("this", this)):
        found.faults += [f"{side}: {fault}" for fault in _failures(folder)]
    left, right = _files(base), _files(this)
    for name in sorted(left | right):
        if name not in left or name not in right:
            found.faults.append(f"{name} is only in {'base' if name in left else 'this'}")
        elif name.endswith(".safetensors"):
            _compare_tensors(name, base / name, this / name, found)
        elif name.endswith(".csv"):
            _compare_rows(name, base / name, this / name, ignored, found)
        else:
            before, after = (json.loads((side / name).read_text(encoding="utf-8")) for side in (base, this))
            _compare_json(name, before, after, ignored, found)
    return found


def _files(folder: Path) -> set[str]:
    wanted = re.compile(r"(.*\.safetensors|metrics\.csv|results\.json|.*-eval\.json)")
    paths = (path.relative_to(folder) for path in folder.rglob("*"))
    return {str(path) for path in paths if wanted.fullmatch(path.name) and "checkpoints" not in path.parts}


def _failures(folder: Path) -> Iterator[str]:
    """Commands that did not end with exit code 0."""
    for log in sorted(folder.rglob("*.log")):
        code = log.with_suffix(".code").read_text() if log.with_suffix(".code").exists() else "none: it did not end"
        if code != "0":
            last = " ".join(log.read_text(errors="replace").split())[-300:]
            yield f"{folder.name}/{log.name}: exit code {code}: {last}"


def _compare_tensors(name: str, base: Path, this: Path, found: Differences) -> None:
    before, after = load_file(base), load_file(this)
    if set(before) != set(after):
        found.faults.append(f"{name}: other tensors: {', '.join(sorted(set(before) ^ set(after)))}")
        return
    square_error = square = 0.0
    worst: list[tuple[float, str]] = []
    for key, one in before.items():
        other = after[key]
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            found.faults.append(
                f"{name}: {key}: {one.dtype} {list(one.shape)} became {other.dtype} {list(other.shape)}"
            )
            continue
        found.tensors += 1
        error = one.double() - other.double()
        square_error += float((error**2).sum())
        square += float((one.double() ** 2).sum())
        if not torch.equal(_raw(one), _raw(other)):
            worst.append((float(error.abs().max()), key))
    distance = 0.0 if square_error == 0 else math.sqrt(square_error / square) if square else math.inf
    if math.isnan(distance):  # equal bits of a NaN are no difference, anything else is
        distance = math.inf if worst else 0.0
    found.distance = max(found.distance, distance)
    if worst:
        largest, key = max(worst, key=lambda pair: (math.isnan(pair[0]), pair[0]))
        found.weights.append(
            f"{name}: {len(worst)} of {len(before)} tensors differ, most {key} by {largest:.3g}; relative distance of "
            f"all {distance:.3g}"
        )


def _raw(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor: torch.equal takes 0 for -0, and no NaN for itself."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _compare_rows(name: str, base: Path, this: Path, ignored: Sequence[str], found: Differences) -> None:
    before, after = (list(csv.DictReader(path.open(encoding="utf-8", newline=""))) for path in (base, this))
    if len(before) != len(after):
        found.numbers.append(f"{name}: {len(before)} rows became {len(after)}")
    differing: list[str] = []
    for one, other in zip(before, after, strict=False):
        for column in one:
            if column not in ignored:
                found.cells += 1
                if one[column] != other.get(column):
                    differing.append(f"step {one['step']}: {column} {one[column]} became {other.get(column)}")
    if differing:
        found.numbers.append(f"{name}: {len(differing)} cells differ, first {differing[0]}")
    if before and after:
        found.more += [f"{name}: {column}" for column in after[0] if column not in before[0]]


def _compare_json(name: str, before: Any, after: Any, ignored: Sequence[str], found: Differences) -> None:
    differing = list(_json_differences(before, after, "", ignored, found, name))
    if differing:
        found.numbers.append(f"{name}: {len(differing)} values differ, first {differing[0]}")


def _json_differences(
    before: Any, after: Any, path: str, ignored: Sequence[str], found: Differences, name: str
) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        before = {RENAMED.get(key, key): value for key, value in before.items()}
        found.more += [f"{name}: {path}/{key}" for key in after if key not in before and key not in ignored]
        for key in before:
            if key in ignored:
                continue
            if key not in after:
                yield f"{path}/{key} is gone"
            else:
                yield from _json_differences(before[key], after[key], f"{path}/{key}", ignored, found, name)
    elif isinstance(before, list) and isinstance(after, list):
        if len(before) != len(after):
            yield f"{path}: {len(before)} entries became {len(after)}"
        for number, (one, other) in enumerate(zip(before, after, strict=False)):
            yield from _json_differences(one, other, f"{path}/{number}", ignored, found, name)
    else:
        found.cells += 1
        if isinstance(before, str) and isinstance(after, str) and " " in before and " " in after:
            return  # sentences may be reworded; names and classes of these data sets are held by the predictions
        if before != after or type(before) is not type(after):
            yield f"{path}: {before!r} became {after!r}"


def judge(case: Case, base: Build, this: Build, seeds: int, moments: dict[str, str]) -> dict[str, Any]:
    """The row of a case."""
    bound = f"relative distance of the weights at most {case.bound:g}" if case.bound else "equal bits, equal numbers"
    row: dict[str, Any] = {"case": case.name, "what": case.what, "asked": bound}
    if case.name == "fp16" and not torch.cuda.is_available():
        return {**row, "found": "not measured: no GPU", "holds": None}
    resumed = case.name == "compare-resume"
    parts = {
        part: compare_folders(
            base.work / ("compare" if resumed else case.name) / part,
            this.work / case.name / part,
            RUN_BY_RUN if resumed else NOT_COMPARED,
        )
        for part in case.parts(seeds)
    }
    all_of_them = list(parts.values())
    num_equal = sum(one.holds(0) for one in all_of_them)
    size = f"{sum(one.tensors for one in all_of_them):,} tensors, {sum(one.cells for one in all_of_them):,} numbers"
    of = f"{num_equal} of {len(parts)} seeds" if not case.once else "all" if num_equal else "not all"
    sentences = [f"{of} equal ({size})"]
    if case.bound and num_equal < len(parts):
        sentences.append(f"relative distance of the weights {max(one.distance for one in all_of_them):.3g}")
    if moments and case.name == "resume":
        sentences.append(f"stopped after steps {', '.join(moments.values())}")
    for part, one in parts.items():
        sentences += [f"{part}: {what}" for what in (*one.faults[:2], *one.weights[:2], *one.numbers[:2])]
    if more := sorted({what for one in all_of_them for what in one.more}):
        sentences.append(f"new: {', '.join(more[:5])}")
    return {
        **row,
        "found": "; ".join(sentences),
        "holds": all(one.holds(case.bound) for one in all_of_them),
        "distance": max(one.distance for one in all_of_them),
        "differences": {
            part: {"faults": one.faults, "weights": one.weights, "numbers": one.numbers, "new": one.more}
            for part, one in parts.items()
            if one.faults or one.weights or one.numbers or one.more
        },
    }


def cpu_model() -> str:
    """As the kernel names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit_of(source: Path) -> str:
    """The commit that is checked out, and whether files differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(source), *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "src")
        return git("rev-parse", "--short=10", "HEAD") + (" with uncommitted changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return f"unknown ({source})"


@contextmanager
def reference(revision: str, path: Path | None, work: Path) -> Iterator[Path]:
    """The source tree to compare with: a given one, or a worktree that is removed again."""
    if path is not None:
        yield path.resolve()
        return
    tree = work / "reference"
    subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "--quiet", "--detach", str(tree), revision], check=True)
    try:
        yield tree
    finally:
        subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(tree)], check=True)


def run_all(base: Commands, this: Commands, chosen: Sequence[Case], seeds: int, work: Path) -> dict[str, str]:
    """Both builds side by side, one process each at a time; then what one build does with the runs of the other."""
    by_name = {case.name: case for case in chosen if case.name != "fp16" or torch.cuda.is_available()}
    of_both = [case for name, case in by_name.items() if name not in ("eval", "resume")]
    uninterrupted, evals = ([by_name[name]] if name in by_name else [] for name in ("resume", "eval"))
    side_by_side((base, [*of_both, *uninterrupted]), (this, of_both), seeds=seeds)
    side_by_side((base, evals), (this, evals), seeds=seeds)
    moments = stop_and_resume(base, this, by_name["resume"], seeds) if uninterrupted else {}
    if "compare-resume" in by_name:
        resume_comparison(base, this, seeds, work)
    return moments


def side_by_side(*of_builds: tuple[Commands, Sequence[Case]], seeds: int) -> None:
    """Cases of each build, in a thread each."""
    with ThreadPoolExecutor(len(of_builds)) as pool:
        try:
            list(pool.map(lambda pair: pair[0].run_cases(pair[1], seeds), of_builds))
        except BaseException:  # leaving the pool waits for its threads, which wait for their processes
            for commands, _ in of_builds:
                commands.stop()
            raise


def measure(base: Build, this: Build, chosen: Sequence[Case], seeds: int, work: Path) -> list[dict[str, Any]]:
    """Run both builds side by side, then what needs both, and judge."""
    builds = [Commands(base), Commands(this)]
    for build in builds:
        build.build.work.mkdir(parents=True)
        build.check_source()
    try:
        moments = run_all(*builds, chosen, seeds, work)
    except BaseException:
        for build in builds:
            build.stop()
        raise
    return [judge(case, base, this, seeds, moments) for case in chosen]


def page(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        "# The same bits",
        "",
        "`benchmarks/same_bits.py` trains the same models with the code of two commits, through the command line, and",
        "compares every tensor of the saved models, metrics.csv and results.json, without times.",
        "",
        f"* command: `{report['command']}`, {report['date']}, {report['seconds']:,.0f} s",
        f"* base: {report['base']}; this checkout: {report['this']}",
        f"* CPU: {report['cpu']}, {report['cores']} cores, 1 thread a process; torch {report['torch']}, Python "
        f"{report['python']}",
        f"* seeds: {', '.join(map(str, range(report['seeds'])))}",
        "",
        "| case | what | asked | found | holds |",
        "| --- | --- | --- | --- | --- |",
    ]
    said = {True: "yes", False: "**no**", None: "-"}
    for row in report["cases"]:
        found = row["found"].replace("|", "\\|")
        lines.append(f"| {row['case']} | {row['what']} | {row['asked']} | {found} | {said[row['holds']]} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Parse arguments, measure, write, and exit with 1 if a bound is broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base", default=BASE, metavar="REV", help=f"commit to compare with; default: {BASE}")
    parser.add_argument("--base-path", type=Path, metavar="DIR", help="a checkout to compare with, instead of a commit")
    parser.add_argument("--only", metavar="NAME[,NAME]", help="cases; default: all")
    parser.add_argument("--seeds", type=int, default=3, help="default: 3")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results", metavar="DIR", help="for the two reports")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep all runs and logs in this new folder")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # the worktree and processes are removed
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="same-bits-") as temporary:
        work = (asked.keep or Path(temporary) / "runs").resolve()
        known = {case.name: case for case in cases(asked.seeds, work)}
        wanted = asked.only.split(",") if asked.only else list(known)
        if unknown := [name for name in wanted if name not in known]:
            parser.error(f"--only: expected some of {', '.join(known)}, got {', '.join(unknown)}")
        wanted += [name for case in wanted for name in known[case].needs]
        chosen = [case for name, case in known.items() if name in wanted]
        with reference(asked.base, asked.base_path, Path(temporary)) as source:
            base = Build("base", source, work / "base", commit_of(source))
            this = Build("this", ROOT, work / "this", commit_of(ROOT))
            print(f"base: {base.commit}; this checkout: {this.commit}; {len(chosen)} cases", flush=True)
            rows = measure(base, this, chosen, asked.seeds, work)
    report = {
        "command": shlex.join(["python", "benchmarks/same_bits.py", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "seconds": round(time.monotonic() - began, 1),
        "base": base.commit,
        "this": this.commit,
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "seeds": asked.seeds,
        "cases": rows,
    }
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "same-bits.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (asked.out / "same-bits.md").write_text(page(report), encoding="utf-8")
    for row in rows:
        verdict = {True: "holds", False: "DOES NOT HOLD", None: "skipped"}[row["holds"]]
        print(f"{verdict}: {row['case']}: {row['found']} (asked: {row['asked']})")
    sys.exit(any(row["holds"] is False for row in rows))


if __name__ == "__main__":
    main()
