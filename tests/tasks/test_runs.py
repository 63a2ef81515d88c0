"""Runs of both tasks: a detector learns, and a run that was stopped is the run that was not."""

import json
import os
import shutil
import signal
import time

import pytest
import torch
from benchmarks.reliability.forked import fork, wait

from glocal.data.pasted import items_on_photos
from glocal.errors import GlocalError
from glocal.models.io import load_model
from glocal.schema import RunResults
from glocal.tasks import DetectionTask
from glocal.training import HeadConfig, Stopped, TrainingError
from glocal.training.trainer import Trainer
from tests.fields import faults
from tests.tasks.making import MAKE, SIZE, Asked, StopAt, detection, rows, run, segmentation, untimed

TASKS = ("detect", "segment")


@pytest.fixture(scope="module", params=TASKS)
def unbroken(request, tmp_path_factory):
    out = tmp_path_factory.mktemp(f"{request.param}-unbroken") / "run"
    return request.param, out, run(request.param, out)


def weights(out):
    return (out / "model.safetensors").read_bytes()


def test_the_folder_of_a_run(unbroken):
    task, out, results = unbroken
    assert {path.name for path in out.iterdir()} == {
        ".lock", "checkpoints", "config.json", "metrics.csv", "model.safetensors", "plan.json", "recipe.yaml",
        "results.json",
    }  # fmt: skip
    assert results == json.loads((out / "results.json").read_text())
    assert faults(results, RunResults) == []
    assert results["steps"] == 4
    score = {"detect": "map", "segment": "miou"}[task]
    assert results["metric"] == score
    assert results[score] == results["curve"][-1]["val_score"]
    saved = load_model(out / "checkpoints/step-00000004")
    assert saved.digest == load_model(out).digest
    assert saved.classes == tuple(results["classes"])


@pytest.mark.parametrize("step", [1, 2])
def test_a_stopped_run_is_the_unbroken_run(unbroken, tmp_path, step):
    task, out, results = unbroken
    stop = StopAt(step)
    with pytest.raises(Stopped) as caught:
        run(task, tmp_path / "run", stop=stop, progress=stop.watch)
    assert caught.value.step == step + 1
    assert not (tmp_path / "run/results.json").exists()
    again = run(task, tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(out)
    assert rows(tmp_path / "run") == rows(out)
    assert untimed(again) == untimed(results)


@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(unbroken, tmp_path, name):
    task, out, results = unbroken
    shutil.copytree(out, tmp_path / "run")
    for gone in ("results.json", "model.safetensors"):
        (tmp_path / "run" / gone).unlink()
    path = tmp_path / "run/checkpoints/step-00000004" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    told = []
    again = run(task, tmp_path / "run", resume=True, say=told.append)
    assert any(str(path) in line and "has changed" in line for line in told)
    assert weights(tmp_path / "run") == weights(out)
    assert untimed(again) == untimed(results)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("task", "head"), [("detect", "mask_rcnn"), ("detect", "fcos"), ("segment", "upernet")])
def test_with_everything_that_draws(tmp_path, task, head, workers):
    settings = ("grad_accum_steps=2", "ema=0.9", "aug_repeats=2", "drop_path=0.2", "epochs=3")
    options = {"options": {"dim": 16}} if head == "upernet" else {}

    def go(out, **kwargs):
        assignment = MAKE[task](head=head, **options)
        return run(task, out, *settings, asked=assignment, num_workers=workers, **kwargs)

    whole = go(tmp_path / "whole")
    for step in (1, 4):
        stop = StopAt(step)
        with pytest.raises(Stopped):
            go(tmp_path / "run", resume=True, stop=stop, progress=stop.watch)
    again = go(tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert untimed(again) == untimed(whole)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("task", TASKS)
def test_a_killed_run_is_the_unbroken_run(tmp_path, task, workers):
    """kill -9, at steps and between them."""

    def go(out, kill_at=None, after=0.0):
        report = Trainer._report

        def then_killed(trainer):
            report(trainer)
            if trainer.state.step == kill_at:
                time.sleep(after)
                os.kill(os.getpid(), signal.SIGKILL)

        Trainer._report = then_killed
        run(task, out, resume=True, num_workers=workers)

    assert wait(fork(lambda: go(tmp_path / "whole"), tmp_path / "log")) == 0, (tmp_path / "log").read_text()
    for kill_at in (1, 2, 3):
        code = wait(fork(lambda at=kill_at: go(tmp_path / "run", at), tmp_path / "log"))
        assert code == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert wait(fork(lambda: go(tmp_path / "run"), tmp_path / "log")) == 0, (tmp_path / "log").read_text()
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert not list((tmp_path / "run").rglob("*tmp-*"))


@pytest.mark.slow
def test_a_detector_learns_eight_images_by_heart(tmp_path):
    source = items_on_photos(SIZE, train=8, val=8)
    learned = Asked(DetectionTask, source.__class__(**{**vars(source), "val": source.train}), HeadConfig("fcos"))
    results = run(
        "detect", tmp_path / "run", "epochs=80", "batch_size=8", "augment=none", "flip=false", "lr=2e-3",
        "checkpoint_every_steps=0", "evaluate_every_epochs=40", asked=learned,
    )  # fmt: skip
    first, last = [point["val_score"] for point in results["curve"]]
    assert last > 0.5, results["curve"]
    assert last > first


def test_a_segmenter_learns(tmp_path):
    results = run("segment", tmp_path / "run", "epochs=10", "checkpoint_every_steps=0", "evaluate_every_epochs=5")
    first, last = (point["val_loss"] for point in results["curve"])
    assert results["curve"][-1]["train_loss"] < results["curve"][0]["train_loss"]
    assert results["pixel_accuracy"] > 0.5
    assert max(first, last) < 10


def test_data_or_head_changed_is_said(unbroken):
    task, out, _ = unbroken
    with pytest.raises(GlocalError, match=r"data\.fingerprint: was"):
        run(task, out, asked=MAKE[task](train=9), resume=True)
    other = {"detect": "fcos", "segment": "upernet"}[task]
    with pytest.raises(GlocalError, match=r"head\.head: was"):
        run(task, out, asked=MAKE[task](head=other), resume=True)


@pytest.mark.parametrize("task", TASKS)
def test_settings_without_meaning_are_refused(tmp_path, task):
    for setting, message in (
        ("mixup=0.2", "mixup has no meaning"),
        ("label_smoothing=0.3", "label_smoothing has no meaning"),
        ("augment=randaugment", "augment must be one of none, light"),
        ("layer_decay=0.5", "layer_decay has no meaning"),
        ("image_size=16", "image_size must be 32 to 2048"),
    ):
        with pytest.raises(GlocalError, match=message):
            run(task, tmp_path / "run", setting)
    made = MAKE[task]().task("label_smoothing=0.1")  # a TrainConfig's own default is nobody's wish
    assert made.model_config.image_size == SIZE


@pytest.mark.parametrize("task", TASKS)
def test_split_parameters_are_refused(tmp_path, task):
    with pytest.raises(GlocalError, match="runs with ddp alone, got fsdp"):
        run(task, tmp_path / "run", device="cpu", devices=2, strategy="fsdp")


def test_one_image_for_a_batchnorm_of_one_pixel_is_explained(tmp_path):
    """DeepLab averages the image to a pixel; three images in steps of two and one."""
    pytest.importorskip("segmentation_models_pytorch")
    with pytest.raises(TrainingError, match=r"BatchNorm needs more than 1 value .* in step \d"):
        run("segment", tmp_path / "run", "batch_size=2", asked=segmentation(train=3, head="smp_deeplabv3plus"))


@pytest.mark.parametrize(("task", "head"), [("detect", "faster_rcnn"), ("segment", "semantic_fpn")])
def test_frozen_is_not_trained(tmp_path, task, head):
    from glocal.tasks.heads import backbone_of

    asked = MAKE[task](head=head, frozen_norm=True)
    model = asked.task("freeze=[backbone]").create_model()
    before = {name: tensor.clone() for name, tensor in backbone_of(model).state_dict().items()}
    run(task, tmp_path / "run", "freeze=[backbone]", asked=asked)
    after = backbone_of(load_model(tmp_path / "run").model).state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_masks_need_masks():
    source = items_on_photos(SIZE, train=2, val=1)

    class Bare(type(source.train)):
        def __getitem__(self, index):
            import dataclasses

            return dataclasses.replace(super().__getitem__(index), masks=None)

    bare = Bare(**vars(source.train))
    with pytest.raises(GlocalError, match="faster_rcnn trains on boxes only"):
        Asked(DetectionTask, source.__class__(**{**vars(source), "train": bare}), HeadConfig("mask_rcnn")).task()
    assert detection().task().skipped == ()
