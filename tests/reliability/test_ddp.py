"""Two processes of which one dies, or that become one. The quick form of benchmarks/reliability/ddp.py."""

import json
import os
import signal
import time

import pytest
from benchmarks.reliability import ddp, forked, watched

from glocal import signals
from glocal.data import load_detection, load_segmentation
from glocal.models.io import load_model
from glocal.tasks import evaluate
from tests.data.annotating import coco_folder
from tests.tasks.extremes import segmentation_folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return ddp.Place(tmp_path_factory.mktemp("ddp")).make()


@pytest.mark.parametrize(
    ("first", "second", "plant"),
    [(2, 1, ddp.die_at(8)), pytest.param(2, 2, ddp.die_at_the_end, marks=pytest.mark.slow)],
)
def test_fsdp_goes_on(place, first, second, plant):
    """Killed after a test and a checkpoint, or when only the results were not written."""
    out = place.folder / f"fsdp{first}{second}"
    arguments = place.arguments(out, "--strategy", "fsdp", "-s", "epochs=2", model="vit_micro")
    logs = [out.with_suffix(f".order{i}") for i in range(2)]
    assert ddp.together(arguments, logs[0], first, plant) == [-signal.SIGKILL] * first
    assert ddp.together(arguments, logs[1], second) == [0] * second
    orders = [ddp.merged(watched.read(log), world) for log, world in zip(logs, (first, second), strict=True)]
    assert list(orders[0] | orders[1]) == list(range(12))
    assert (out / "results.json").exists()


def test_the_order_of_images_is_that_of_one_process(place):
    orders = []
    for world in (1, 2):
        log = place.folder / f"order{world}"
        codes = ddp.together([*place.arguments(place.folder / f"world{world}"), "-s", "epochs=1"], log, world)
        assert codes == [0] * world, log.with_suffix(".said").read_text()
        orders.append(ddp.merged(watched.read(log), world))
    assert orders[0] == orders[1]
    assert len({image for images in orders[0].values() for image in images}) == 48


def test_an_average_of_the_weights_trains_on_two_processes(place):
    """DDP must not wait for gradients of the average."""
    log = place.folder / "ema"
    arguments = [*place.arguments(place.folder / "ema2"), "-s", "epochs=1", "-s", "ema=0.9"]
    assert ddp.together(arguments, log, 2) == [0, 0], log.with_suffix(".said").read_text()


def orphan(knows):
    """Start a process, and end before it has come to look for us; it is of our session."""

    def first():
        os.environ[signals.LAUNCHER] = str(os.getpid())
        if os.fork() == 0:
            time.sleep(0.5)
            if knows:
                signals.end_with_parent()
            time.sleep(20)

    return first


@pytest.mark.parametrize("knows", [True, False])
def test_no_orphan_though_the_parent_was_gone_first(tmp_path, knows):
    pid = forked.fork(orphan(knows), tmp_path / "log")
    assert forked.wait(pid) == 0
    assert (forked.gone(pid, 4) < 4) == knows


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "step"), [(0, 6), (1, 6), (0, None)])
def test_one_of_two_is_killed(place, rank, step):
    single = place.folder / "one.order"
    if not single.exists():
        assert ddp.together(place.arguments(place.folder / "one"), single, 1) == [0]
    expected = ddp.merged(watched.read(single), 1)
    out = place.folder / f"kill{rank}{step}"
    seconds, (faults, lines, _) = ddp.kill_one(place, out.name, rank, step, [])
    assert seconds < ddp.GONE
    assert faults == []
    assert ddp.goes_on(place, out, lines, expected, 2) == []
    assert ddp.goes_on(place, out, lines, expected, 1) == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "everybody"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_signal_while_the_second_process_starts(place, number, everybody):
    seconds, code = ddp.stopped(place, f"stop{number}", number, everybody)
    assert seconds < ddp.GONE
    assert code == 75


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    """A small COCO folder, and the generated label maps as files."""
    root = tmp_path_factory.mktemp("annotated")
    coco_folder(root / "detect", [2, 1, 0, 3, 2, 5, 1, 1, 2, 3, 1, 2], [2, 0, 3, 1, 4], kinds=("runs",))
    segmentation_folder(root / "segment")
    return root


def task_call(root, out, task, *more):
    """``glocal detect train`` or ``glocal segment train``; ``--resume`` begins a run too."""
    heads = {"detect": ["--detector", "mask_rcnn"], "segment": ["--option", "dim=32", "--option", "head_dim=32"]}
    settings = ["epochs=4", "batch_size=4", "image_size=64", "log_every_steps=1", "checkpoint_every_steps=2"]
    return [
        task, "train", str(root / task), "--model", "resnet_micro", *heads[task], "--device", "cpu", "--workers", "0",
        "--out", str(out), "--resume", *(part for setting in settings for part in ("-s", setting)), *more,
    ]  # fmt: skip


def same_as_saved(annotated, out, task):
    """What a run says it has measured is what its saved model gives, though each process has seen other images."""
    results = json.loads((out / "results.json").read_text())
    saved = load_model(out)
    if task == "detect":
        measured = evaluate(saved, load_detection(str(annotated / task), progress=False).val)
        return (measured["map"], measured["mask"]["map"]) == (results["map"], results["mask"]["map"])
    measured = evaluate(saved, load_segmentation(str(annotated / task), progress=False).val)
    return measured["confusion"] == results["confusion"]


def test_what_is_measured_is_what_is_saved(annotated, tmp_path):
    """The statistics of BatchNorm are of the images that a process has seen; those of the first are saved."""
    out = tmp_path / "run"
    assert ddp.together(task_call(annotated, out, "segment", "-s", "epochs=2"), tmp_path / "log", 2) == [0, 0]
    assert same_as_saved(annotated, out, "segment")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detect", "segment"])
def test_other_tasks_on_two_processes(annotated, tmp_path, task):
    """The images of one process in its order; killed after a checkpoint, resumed to the bits of the unbroken run."""

    def go(name, world, plant=lambda: None):
        log = tmp_path / f"{name}.order"
        codes = ddp.together(task_call(annotated, tmp_path / name.split("-")[0], task), log, world, plant)
        return codes, ddp.merged(watched.read(log), world), log.with_suffix(".said").read_text()

    codes, expected, said = go("one", 1)
    assert codes == [0], said
    codes, order, said = go("two", 2)
    assert codes == [0, 0], said
    assert order == expected
    codes, before, said = go("killed", 2, ddp.die_at(4))
    assert codes == [-signal.SIGKILL] * 2, said
    codes, after, said = go("killed-again", 2)
    assert codes == [0, 0], said
    assert min(after) == 4
    assert before | after == expected
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("two", "killed")]
    assert weights[0] == weights[1]
    results = json.loads((tmp_path / "two/results.json").read_text())
    assert results["processes"] == 2
    assert same_as_saved(annotated, tmp_path / "two", task)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detect", "segment"])
def test_the_command_starts_the_second_process_of_other_tasks(annotated, tmp_path, task):
    log = tmp_path / "log.order"
    process = ddp.start([], task_call(annotated, tmp_path / "run", task, "--devices", "2", "-s", "epochs=1"), log)
    assert process.wait(300) == 0, log.with_suffix(".said").read_text()
    assert {line["rank"] for line in watched.read(log)} == {0, 1}
    assert json.loads((tmp_path / "run/results.json").read_text())["processes"] == 2
    assert ddp.survivors(log, process) < ddp.GONE
