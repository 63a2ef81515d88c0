"""A run's folder: what is in it, and that a run that was stopped is the run that was not."""

import json
import shutil

import pytest
import timm
import torch

import glocal  # noqa: F401  (registers the models)
from glocal.data import DataSource
from glocal.data.transforms import Normalize
from glocal.errors import GlocalError
from glocal.models.creation import create
from glocal.run_dir import hold_folder
from glocal.schema import RunResults
from glocal.signals import StopRequest
from glocal.tasks import ClassificationTask
from glocal.training import (
    Checkpointer,
    Stopped,
    TrainConfig,
    TrainingError,
    load_pixels,
    predict,
)
from glocal.training.run import COLUMNS, train_run
from glocal.training.trainer import Trainer
from tests.fields import faults
from tests.shapes import image_set

RECIPE = TrainConfig.of(epochs=3, batch_size=16, lr=1e-2, image_size=32, log_every_steps=2)
HARD = RECIPE.replace(
    augment="randaugment", mixup=0.2, cutmix=1.0, random_erasing=0.5, drop_path=0.2, ema=0.9, aug_repeats=3,
    grad_accum_steps=2, layer_decay=0.8, class_balance=0.5, clip_grad=1.0, checkpoint_every_steps=5,
)  # fmt: skip


def source(train=60, seed=0, fingerprint="f0"):
    images, val = image_set(train, seed=seed), image_set(30, seed=1, name="val")
    return DataSource("shapes", images, val, images.classes, (), (), "made", fingerprint)


SOURCE = source()


def task(recipe=RECIPE, source=None, **settings):
    return ClassificationTask.for_data(source or SOURCE, recipe.replace(**{"name": "resnet_micro", **settings}))


class StopAt(StopRequest):
    """Asked to stop at a step, as by a signal."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def watch(self, progress):
        if progress.step == self.step:
            self.requested = "SIGTERM"


def stopped_at(steps, out, recipe=RECIPE, **kwargs):
    """Run with a stop after each of these steps, resume after each, return the results."""
    for step in steps:
        stop = StopAt(step)
        with pytest.raises(Stopped) as caught:
            train_run(task(recipe, resume=True, **kwargs), out, stop=stop, progress=stop.watch)
        assert caught.value.step == step + 1, "the step that was going on is finished, and saved"
        assert Checkpointer(out / "checkpoints").steps()[0] == step + 1
    return train_run(task(recipe, resume=True, **kwargs), out)


def weights(out):
    return (out / "model.safetensors").read_bytes()


def rows(out):
    lines = (out / "metrics.csv").read_text().splitlines()
    assert lines[0] == ",".join((*COLUMNS, *ClassificationTask.columns))
    timed = {COLUMNS.index("seconds"), COLUMNS.index("images_per_s")}
    return [[cell for i, cell in enumerate(line.split(",")) if i not in timed] for line in lines[1:]]


def untimed(results):
    kept = {k: v for k, v in results.items() if k not in ("seconds", "images_per_s", "curve", "environment")}
    return kept | {"curve": [{k: v for k, v in point.items() if k != "seconds"} for point in results["curve"]]}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "run"
    return out, train_run(task(), out)


def test_the_folder_of_a_run(unbroken):
    out, results = unbroken
    assert {path.name for path in out.iterdir()} == {
        ".lock", "checkpoints", "config.json", "metrics.csv", "model.safetensors", "plan.json", "recipe.yaml",
        "results.json",
    }  # fmt: skip
    assert results == json.loads((out / "results.json").read_text())
    assert faults(results, RunResults) == []
    assert results["steps"] == 12
    assert results["top1"] == results["curve"][-1]["val_score"]
    assert [row[0] for row in rows(out)] == ["2", "4", "4", "6", "8", "8", "10", "12", "12"]
    assert sorted(path.name for path in (out / "checkpoints").iterdir())[-1] == "step-00000012"
    assert (out / "checkpoints/step-00000012/recipe.yaml").read_text() == (out / "recipe.yaml").read_text()


def test_the_model_of_a_run_is_timms_too(unbroken):
    out, results = unbroken
    model = timm.create_model(f"local-dir:{out}", pretrained=True)
    assert model.pretrained_cfg["label_names"] == list(SOURCE.classes)
    prepare = Normalize(model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
    logits = predict(model, prepare, load_pixels(SOURCE.val, model.pretrained_cfg["input_size"][-1]))
    assert (logits.argmax(1).numpy() == SOURCE.val.labels).mean() == results["top1"]


@pytest.mark.parametrize("steps", [[1], [4, 6], [2, 7, 10]])
def test_a_stopped_run_is_the_unbroken_run(unbroken, tmp_path, steps):
    out, results = unbroken
    again = stopped_at(steps, tmp_path / "run")
    assert weights(tmp_path / "run") == weights(out)
    assert rows(tmp_path / "run") == rows(out)
    assert untimed(again) == untimed(results)


@pytest.mark.parametrize("workers", [0, 2])
def test_with_everything_that_draws(tmp_path, workers):
    whole = train_run(task(HARD), tmp_path / "whole")
    again = stopped_at([3, 8], tmp_path / "run", HARD, num_workers=workers)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert untimed(again) == untimed(whole)


def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(unbroken, tmp_path):
    out, results = unbroken
    killed = tmp_path / "run"
    shutil.copytree(out, killed)
    for name in ("results.json", "model.safetensors", "checkpoints/step-00000012"):
        path = killed / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (killed / "checkpoints/.tmp-1-abc").mkdir()
    told = []
    again = train_run(task(resume=True), killed, say=told.append)
    assert "Resuming from step 8." in told
    assert weights(killed) == weights(out)
    assert rows(killed) == rows(out)
    assert untimed(again) == untimed(results)
    assert not list(killed.rglob(".tmp-*"))


def test_a_damaged_newest_checkpoint_is_named_and_passed_over(unbroken, tmp_path):
    out, _ = unbroken
    damaged = tmp_path / "run"
    shutil.copytree(out, damaged)
    (damaged / "results.json").unlink()
    path = damaged / "checkpoints/step-00000012/optim.safetensors"
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    told = []
    train_run(task(resume=True), damaged, say=told.append)
    assert any(str(path) in line and "has changed" in line for line in told)
    assert weights(damaged) == weights(out)


def test_when_none_is_whole_nothing_is_trained(unbroken, tmp_path):
    damaged = tmp_path / "run"
    shutil.copytree(unbroken[0], damaged)
    (damaged / "results.json").unlink()
    for path in damaged.glob("checkpoints/*/state.json"):
        path.write_text("{}")
    with pytest.raises(GlocalError, match="all 2 checkpoints are damaged; start a new run"):
        train_run(task(resume=True), damaged)


def test_a_finished_run_is_not_trained_again(unbroken):
    out, results = unbroken
    before = (out / "model.safetensors").stat().st_mtime_ns
    assert train_run(task(resume=True), out) == results
    assert (out / "model.safetensors").stat().st_mtime_ns == before


def test_a_run_is_not_overwritten(unbroken):
    with pytest.raises(GlocalError, match="has a run already; use --resume"):
        train_run(task(), unbroken[0])


def test_a_run_that_trained_nothing_is_begun_anew(unbroken, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    shutil.copy(unbroken[0] / "plan.json", out)
    results = train_run(task(RECIPE.replace(epochs=1)), out)
    assert results["plan"]["recipe"]["epochs"] == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other/plan.json").write_text('{"of": "somebody else"}')
    with pytest.raises(GlocalError, match="has a run already"):
        train_run(task(), tmp_path / "other")


def test_what_changed_is_listed_and_refused(unbroken, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(unbroken[0], out)
    changed = task(RECIPE.replace(lr=1e-3), source(fingerprint="f1"), resume=True, seed=1)
    with pytest.raises(GlocalError) as caught:
        train_run(changed, out)
    for line in ("seed: was 0, is 1", "recipe.lr: was 0.01, is 0.001", 'data.fingerprint: was "f0", is "f1"'):
        assert line in str(caught.value)
    told = []
    longer = task(RECIPE.replace(epochs=4), resume=True, allow_changed=True)
    results = train_run(longer, out, say=told.append)
    assert results["steps"] == 16
    assert any("recipe.epochs: was 3, is 4" in line for line in told)


def test_a_folder_in_use_is_refused_at_once(unbroken):
    with hold_folder(unbroken[0]), pytest.raises(GlocalError, match="is in use by process"):
        train_run(task(resume=True), unbroken[0])


def test_too_little_space_is_known_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(GlocalError, match=r"checkpoints need \d+ MiB in .*, 1 MiB are free"):
        train_run(task(), tmp_path / "run")
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_disk_that_is_full_later_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    import glocal.training.checkpoint as module

    save, calls = module.save_file, []

    def full(tensors, path, **kwargs):
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(tensors, path, **kwargs)

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(
        TrainingError, match=r"No space left on device.*MiB free.*--resume; the last good state is .*step-00000004"
    ):
        train_run(task(), tmp_path / "run")
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000004"]
    assert train_run(task(resume=True), tmp_path / "run")["steps"] == 12


def test_weights_that_are_not_finite_are_never_written(tmp_path, monkeypatch):
    before = Trainer._save

    def save(trainer):
        if trainer.state.step == 5:
            next(trainer.model.parameters()).data.fill_(float("nan"))
        before(trainer)

    monkeypatch.setattr(Trainer, "_save", save)
    with pytest.raises(TrainingError, match=r"not written, as .* is not finite.*last good state is .*step-00000004"):
        train_run(task(RECIPE.replace(checkpoint_every_steps=1)), tmp_path / "run")


def test_the_best_checkpoint_is_kept(tmp_path):
    results = train_run(task(RECIPE.replace(epochs=8, lr=3e-2)), tmp_path / "run")
    steps = Checkpointer(tmp_path / "run/checkpoints").steps()
    top1 = {point["step"]: point["val_score"] for point in results["curve"]}
    assert results["best"] == {
        "step": min(s for s in top1 if top1[s] == max(top1.values())),
        "top1": max(top1.values()),
    }
    assert set(steps) == {32, 28, results["best"]["step"]}


@pytest.mark.parametrize("precision", ["bf16"])
def test_mixed_precision_resumes_too(tmp_path, precision):
    whole = train_run(task(precision=precision), tmp_path / "whole")
    again = stopped_at([5], tmp_path / "run", precision=precision)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert again["top1"] == whole["top1"]


def test_a_frozen_backbone_does_not_move(tmp_path):
    recipe = RECIPE.replace(freeze=("backbone",))
    results = train_run(task(recipe), tmp_path / "run")
    before = create("resnet_micro", num_classes=3, image_size=32, seed=0).state_dict()
    after = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True).state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"head.weight", "head.bias"} or moved == {"fc.weight", "fc.bias"}
    assert results["steps"] == 12
