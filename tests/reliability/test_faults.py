"""Faults of the machine: what the command says of them, how it ends, and that nothing is lost."""

import os
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
from benchmarks.reliability import forked

from glocal.tasks import ClassificationTask
from glocal.training import run
from glocal.training.checkpoint import check
from glocal.training.trainer import Trainer
from tests.shapes import write_folder

RECIPE = forked.SMALL.replace(batch_size=16, checkpoint_every_steps=2)
STEP = 5  # of 6: there is a checkpoint then


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    write_folder(folder / "data")
    (folder / "recipe.yaml").write_text(RECIPE.to_yaml())
    assert run_command(folder, folder / "whole")[0] == 0
    return folder


def arguments(folder, out, *more):
    here = ["train", str(folder / "data"), "--model", "resnet_micro", "--recipe", str(folder / "recipe.yaml")]
    return [*here, "--out", str(out), "--device", "cpu", "--resume", *more]


def run_command(folder, out, plant=lambda: None, *more):
    """Exit code and all that is said."""
    log = folder / f"{out.name}.said"
    log.unlink(missing_ok=True)

    def job():
        plant()
        forked.command(*arguments(folder, out, *more))

    return forked.run(job, log), log.read_text()


def at_step(act):
    """Do something at the start of a step."""
    next_batch = Trainer._next_batch

    def acting(running, *args):
        if running.state.step == STEP:
            act()
        return next_batch(running, *args)

    Trainer._next_batch = acting


def goes_on(folder, out):
    """Without the fault the run goes on, and its end is that of the unbroken one."""
    code, said = run_command(folder, out)
    assert code == 0, said
    assert forked.differs(out, folder / "whole") == []


def too_much():
    torch.empty(1 << 60, dtype=torch.uint8)  # the allocator says what it says


def gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


@pytest.mark.parametrize("cause", [too_much, gpu])
def test_out_of_memory(place, cause):
    def plant():
        loss = ClassificationTask.loss
        at_step(lambda: setattr(ClassificationTask, "loss", lambda *args, **kwargs: cause() or loss(*args, **kwargs)))

    out = place / cause.__name__
    code, said = run_command(place, out, plant)
    assert code == 1, said
    assert "out of memory" in said
    assert "with a batch_size of 16, 16 images at a time" in said
    assert "grad_accum_steps=2 keeps it and takes 8 at a time, or lower batch_size" in said
    assert "the last good state is" in said
    assert "step-00000004" in said
    assert "Traceback" not in said
    goes_on(place, out)


def test_a_reading_process_dies(place):
    def kill():
        children = [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
        print(f"killed {children[0]} at {time.time()}")
        os.kill(children[0], signal.SIGKILL)
        time.sleep(0.5)  # so that it is noticed in this step

    out = place / "worker"
    code, said = run_command(place, out, lambda: at_step(kill), "--workers", "2")
    ended = time.time()
    killed, moment = next(line.split()[1::2] for line in said.splitlines() if line.startswith("killed"))
    assert code == 1, said
    assert ended - float(moment) < 5
    assert "a data-loading worker died after step" in said
    assert f"pid(s) {killed}" in said or f"pid {killed}" in said
    assert "fewer --workers" in said
    assert "Traceback" not in said
    time.sleep(0.1)
    goes_on(place, out)


def full_disk():
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def full_metrics():
    open_ = open
    run.open = lambda path, mode, **kwargs: open_("/dev/full" if mode == "a" else path, mode, **kwargs)


def full_at_the_end():
    save = ClassificationTask.save

    def last(task, model, out):
        if out.name == "end":
            full_disk()
        save(task, model, out)

    ClassificationTask.save = last


@pytest.mark.parametrize(
    ("name", "plant", "says"),
    [
        ("checkpoint", lambda: at_step(full_disk), ("cannot write a checkpoint to", "MiB free", "step-00000004")),
        ("metrics", full_metrics, ("No space left on device", "--resume continues")),
        ("end", full_at_the_end, ("File too large", "--resume continues")),
    ],
)
def test_a_full_disk(place, name, plant, says):
    out = place / name
    code, said = run_command(place, out, plant)
    assert code == 1, said
    assert all(words in said for words in says), said
    assert "Traceback" not in said
    assert not (out / "model.safetensors").exists()
    assert not list(out.rglob("*tmp-*"))
    for path in out.glob("checkpoints/step-*"):
        check(path)
    goes_on(place, out)


@pytest.mark.parametrize("where", ["recipe.yaml/run", "/proc/nowhere/run"])
def test_a_folder_that_cannot_be_written_is_refused_before_data_is_read(place, where):
    def plant():
        from glocal import data

        data.load_data = lambda *args, **kwargs: print("DATA IS READ")

    code, said = run_command(place, place / where, plant) if where[0] != "/" else _elsewhere(place, where, plant)
    assert code == 2, said
    assert "out: cannot write to" in said
    assert "choose another --out" in said
    assert "DATA IS READ" not in said


def _elsewhere(folder, where, plant):
    log = folder / "elsewhere.said"

    def job():
        plant()
        forked.command(*arguments(folder, where))

    return forked.run(job, log), log.read_text()


def test_a_second_run_in_the_folder_is_refused_at_once(place):
    out = place / "twice"
    log = place / "first.said"

    def first():
        at_step(lambda: time.sleep(2))
        forked.command(*arguments(place, out))

    pid = forked.fork(first, log)
    while not list(out.glob("checkpoints/step-00000004")):
        time.sleep(0.02)
    began = time.monotonic()
    code, said = run_command(place, out)
    assert code == 2, said
    assert f"is in use by process {pid}" in said
    assert time.monotonic() - began < 3, "it waited"
    assert forked.wait(pid) == 0, log.read_text()
    assert forked.differs(out, place / "whole") == []
