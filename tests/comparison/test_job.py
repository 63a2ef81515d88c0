"""A comparison as a whole, in this process, on drawings that micro models learn in a few steps."""

import dataclasses
import html
import json
import re
import shutil

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from glocal.comparison import compare, make_settings, pictures_of_mistakes
from glocal.comparison.features import HeadInputs
from glocal.comparison.settings import NOT_COMPARED
from glocal.data.transforms import Normalize
from glocal.errors import GlocalError
from glocal.models.creation import normalisation
from glocal.schema import CompareResults, Record
from glocal.training import TrainingError, load_pixels, load_recipe, predict
from glocal.training.trainer import Trainer
from tests.comparison.asking import RECIPE, losses, model_files, scores, settings
from tests.fields import faults
from tests.shapes import CLASSES, data_source


@pytest.fixture(scope="module")
def data():
    return data_source()


class Watcher:
    """Keeps what it is told, and may stop the comparison at a step of a run."""

    def __init__(self, stop_at=None):
        self.stop_at, self.started, self.published, self.said = stop_at, [], [], []

    def say(self, text):
        self.said.append(text)

    def start(self, run, number, total):
        self.started.append((run.id, number, total))

    def update(self, run, progress):
        if (run.id, progress.step) == self.stop_at:
            raise KeyboardInterrupt

    def finish(self, run, entry): ...
    def after_look(self, look, race): ...

    def publish(self, results):
        self.published.append(json.loads(json.dumps(results, allow_nan=False)))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """An uninterrupted comparison: (results, folder, what was told)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("glocal.comparison.costs.TIMING_SECONDS", 0.02)
        out, watcher = tmp_path_factory.mktemp("whole"), Watcher()
        return compare(data, settings(), out, command="the command", observer=watcher), out, watcher


def test_results_have_their_schema(whole):
    results, out, watcher = whole
    assert results["schema"] == "glocal.compare/1"
    assert faults(results, CompareResults) == []
    for run in results["runs"]:
        record = json.loads((out / "runs" / run["id"] / "record.json").read_text())
        assert faults(record, Record) == []
    assert results["command"] == "the command"
    assert [run["id"] for run in results["runs"]] == [
        *("resnet_micro-f1-s0", "vit_micro-f1-s0", "resnet_micro-f1-s1", "vit_micro-f1-s1")
    ]
    for run in results["runs"]:
        assert run["status"] == "ok"
        assert run["top1"] == pytest.approx(np.trace(run["confusion"]) / 30)
        assert run["top5"] is None  # three classes
        assert run["budget"]["epochs"] == 2.0
        assert run["budget"]["flop"] == pytest.approx(6 * run["macs"] * 120)
        assert len(run["curve"]) == 4
        assert all(run[cost] > 0 for cost in ("params", "macs", "latency_ms_b1", "images_per_s_b32", "peak_memory_mib"))
    data = results["data"]
    assert (data["classes"], data["train"], data["val"]) == (list(CLASSES), 60, 30)
    assert data["train_per_class"] == [20, 20, 20]
    assert {row["model"] for row in results["summary"]} == {"resnet_micro", "vit_micro"}
    assert results["verdict"]["most_accurate"] == results["summary"][0]["model"]
    assert results["settings"]["recipe"] == {k: v for k, v in RECIPE.to_recipe().items() if k not in NOT_COMPARED}
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert watcher.published[-1] == results
    assert watcher.started[1] == ("vit_micro-f1-s0", 2, 4)


def test_python_leaves_what_the_command_leaves(whole):
    results, out, _ = whole
    assert json.loads((out / "results.json").read_text()) == results
    assert (out / "results.csv").read_text().count("\n") == 1 + len(results["runs"])
    page = re.sub(r"<[^>]*>", "", (out / "report.html").read_text())
    letters = lambda text: re.sub(r"\W+", "", html.unescape(text))  # noqa: E731 - the page has its own hyphens and spaces
    assert letters(results["verdict"]["sentence"]) in letters(page)


def test_mistakes_have_their_pictures(whole, data):
    results = whole[0]
    pictures = pictures_of_mistakes(results, data)
    mistakes = [mistake for run in results["runs"] for mistake in run["mistakes"]]
    assert mistakes
    for mistake in mistakes:
        index = data.val.paths.index(mistake["path"])
        assert data.val.labels[index] == mistake["true"] != mistake["predicted"]
        assert pictures[mistake["picture"]].tobytes() == data.val.image(index).tobytes()


def test_a_saved_model_loads_with_timm_and_answers_as_in_the_record(whole, data):
    results, out, _ = whole
    for run in results["runs"]:
        folder = out / "runs" / run["id"]
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        config = json.loads((folder / "config.json").read_text())
        assert config["label_names"] == list(CLASSES)
        transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
        batch = torch.stack([transform(data.val.image(i)) for i in range(30)])
        with torch.inference_mode():
            logits = model(batch)
        saved = load_file(folder / "predictions.safetensors")
        torch.testing.assert_close(logits, saved["logits"], rtol=1e-4, atol=1e-4)
        assert saved["labels"].tolist() == data.val.labels.tolist()
        assert out / run["weights"] == folder / "model.safetensors"


def test_nothing_is_pickled(whole):
    names = {path.name for path in whole[1].rglob("*") if path.is_file()}
    assert names == {
        *(".lock", "plan.json", "costs.json"),
        *("record.json", "config.json", "model.safetensors", "predictions.safetensors"),
        *("results.json", "results.csv", "report.html"),
    }


def test_a_run_does_not_depend_on_the_others(whole, data, tmp_path):
    alone = compare(data, settings(models=["vit_micro"]), tmp_path)
    expected = [run for run in scores(whole[0]) if run["id"].startswith("vit")]
    assert scores(alone) == expected
    saved = [load_file(root / "runs/vit_micro-f1-s1/model.safetensors") for root in (whole[1], tmp_path)]
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])


def test_side_by_side_in_processes_gives_the_same(whole, data, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one = compare(data, settings(), tmp_path / "one")
        many = compare(data, settings(), tmp_path / "many", side_by_side=True)
    finally:
        torch.set_num_threads(threads)
    costs = json.loads((tmp_path / "many" / "costs.json").read_text())
    if costs["threads"] == 1:
        assert (scores(one), losses(one)) == (scores(many), losses(many))
    assert [run["status"] for run in many["runs"]] == ["ok"] * 4


@pytest.mark.parametrize("stop_at", [("resnet_micro-f1-s0", 1), ("vit_micro-f1-s0", 6), ("resnet_micro-f1-s1", 4)])
def test_after_a_stop_resume_runs_what_is_missing_and_ends_the_same(whole, data, tmp_path, stop_at):
    with pytest.raises(KeyboardInterrupt):
        compare(data, settings(), tmp_path, observer=Watcher(stop_at))
    watcher = Watcher()
    results = compare(data, settings(), tmp_path, resume=True, observer=watcher)
    order = [run["id"] for run in whole[0]["runs"]]
    assert [run_id for run_id, *_ in watcher.started] == order[order.index(stop_at[0]) :]
    assert (scores(results), losses(results)) == (scores(whole[0]), losses(whole[0]))


def test_resume_of_a_finished_comparison_runs_nothing(whole, data):
    watcher = Watcher()
    results = compare(data, settings(), whole[1], resume=True, command="the command", observer=watcher)
    assert not watcher.started
    assert watcher.published == [results]
    assert {**results, "created": ""} == {**whole[0], "created": ""}


def test_changed_data_are_refused(whole, data):
    with pytest.raises(GlocalError, match="data: was "):
        compare(dataclasses.replace(data, fingerprint="other"), settings(), whole[1], resume=True)


def test_a_damaged_record_is_run_again(data, tmp_path):
    first = compare(data, settings(seeds=1), tmp_path)
    weights = tmp_path / "runs/vit_micro-f1-s0/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    watcher = Watcher()
    again = compare(data, settings(seeds=1), tmp_path, resume=True, observer=watcher)
    assert [run_id for run_id, *_ in watcher.started] == ["vit_micro-f1-s0"]
    assert any("vit_micro-f1-s0 is damaged (model.safetensors has changed)" in text for text in watcher.said)
    assert scores(again) == scores(first)


def test_a_failed_run_is_recorded_the_others_go_on_and_resume_tries_again(data, tmp_path, monkeypatch):
    fit = Trainer.fit

    def fail_for_resnet(trainer, model, *args):
        if type(model).__name__ == "ResNet":
            raise TrainingError("the loss became nan at step 3")
        return fit(trainer, model, *args)

    monkeypatch.setattr(Trainer, "fit", fail_for_resnet)
    results = compare(data, settings(seeds=1), tmp_path)
    failed, ok = results["runs"]
    assert (failed["status"], failed["error"]) == ("failed", "the loss became nan at step 3")
    assert ok["status"] == "ok"
    assert [row["model"] for row in results["summary"]] == ["vit_micro"]
    assert any("resnet_micro-f1-s0 failed" in caveat for caveat in results["verdict"]["caveats"])
    assert json.dumps(results, allow_nan=False)

    monkeypatch.undo()
    watcher = Watcher()
    results = compare(data, settings(seeds=1), tmp_path, resume=True, observer=watcher)
    assert [run_id for run_id, *_ in watcher.started] == ["resnet_micro-f1-s0"]
    assert [run["status"] for run in results["runs"]] == ["ok", "ok"]


def test_fractions_are_trained_on_fewer_images(data, tmp_path):
    results = compare(data, settings(["resnet_micro"], seeds=1, fractions=[1.0, 0.5]), tmp_path)
    assert [run["id"] for run in results["runs"]] == ["resnet_micro-f1-s0", "resnet_micro-f0.5-s0"]
    assert [run["budget"]["flop"] / run["macs"] for run in results["runs"]] == [6 * 120, 6 * 60]
    assert [row["fraction"] for row in results["summary"]] == [1.0, 0.5]


@pytest.mark.parametrize("model", ["botnet26t_256", "vgg11"])  # one cannot be made, the other not run
def test_a_model_that_cannot_take_the_size_is_refused_before_anything_runs(data, tmp_path, model):
    with pytest.raises(GlocalError, match=f"{model} cannot be made for 20 x 20 images: "):
        compare(data, settings([model], image_size=20), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_finished_comparison_is_judged_again_by_another_cost(data, whole, tmp_path):
    _, folder, _ = whole
    shutil.copytree(folder, tmp_path / "out")
    for cost, key, better in (("macs", "macs", min), ("throughput", "images_per_s_b32", max)):
        again = compare(data, settings(cost=cost), tmp_path / "out", resume=True)
        ties = [row for row in again["summary"] if row["tied_with_best"]]
        cheapest = next(row for row in ties if row["model"] == again["verdict"]["cheapest_tied"])
        low, high = cheapest.get(f"{key}_range") or [cheapest[key]] * 2
        assert low <= better(row[key] for row in ties) <= high
        assert len(again["runs"]) == 4


# Starting from weights


@pytest.fixture(scope="module")
def weights(whole):
    return whole[1] / "runs/resnet_micro-f1-s0/model.safetensors"


def probing(weights, model="resnet_micro", **more):
    return make_settings([model], mode="probe", weights={model: weights}, device="cpu", **more)


def test_probe_trains_the_head_alone(data, weights, tmp_path):
    results = compare(data, probing(weights), tmp_path)
    (run,) = results["runs"]
    assert run["budget"]["asked"] == results["settings"]["budget"] == "converged"
    assert not any("one seed" in caveat for caveat in results["verdict"]["caveats"])  # there is nothing random
    before, after = load_file(weights), load_file(tmp_path / run["weights"])
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"fc.weight", "fc.bias"}
    assert run["status"] == "ok"
    assert run["top1"] > 0.5
    # the record is of the model with its new head
    model = timm.create_model(f"local-dir:{tmp_path / 'runs' / run['id']}", pretrained=True)
    cfg = model.pretrained_cfg
    logits = predict(model, Normalize(cfg["mean"], cfg["std"]), load_pixels(data.val, 32))
    torch.testing.assert_close(
        logits, load_file(tmp_path / "runs" / run["id"] / "predictions.safetensors")["logits"], rtol=1e-4, atol=1e-4
    )


def test_probe_of_a_model_of_two_heads(data, tmp_path):
    file = tmp_path / "conformer.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("conformer_micro", num_classes=7).state_dict(), file)
    (run,) = compare(data, probing(file, "conformer_micro"), tmp_path / "out")["runs"]
    assert run["status"] == "ok"
    folder = tmp_path / "out/runs" / run["id"]
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    logits = predict(model, Normalize(*normalisation(model)), load_pixels(data.val, 32))
    torch.testing.assert_close(logits, load_file(folder / "predictions.safetensors")["logits"], rtol=1e-3, atol=1e-3)
    assert (logits.argmax(1).numpy() == data.val.labels).mean() == pytest.approx(run["top1"])


def test_probes_of_fractions_share_the_features_and_resume_equals_the_whole(data, weights, tmp_path, monkeypatch):
    settings = probing(weights, fractions=[1.0, 0.5])
    whole = compare(data, settings, tmp_path / "whole")
    assert len(list((tmp_path / "whole/features").iterdir())) == 1
    stop_at = "resnet_micro-f0.5-s0", whole["runs"][1]["budget"]["steps"]
    with pytest.raises(KeyboardInterrupt):
        compare(data, settings, tmp_path / "out", observer=Watcher(stop_at))
    monkeypatch.setattr(HeadInputs, "forward", None)  # what it has computed it does not compute again
    resumed = compare(data, settings, tmp_path / "out", resume=True)
    assert scores(resumed) == scores(whole)
    assert model_files(tmp_path / "out") == model_files(tmp_path / "whole")


def finetuning(weights, model="resnet_micro"):
    return settings([model], "1ep", 1, load_recipe("finetune"), mode="finetune", weights={model: weights})


def test_finetuning_starts_from_the_weights_with_a_new_head(data, weights, tmp_path, monkeypatch):
    started = {}

    def keep(trainer, model, *sets):
        started.update({name: tensor.clone() for name, tensor in model.state_dict().items()})
        raise TrainingError("seen")

    monkeypatch.setattr(Trainer, "fit", keep)
    compare(data, finetuning(weights), tmp_path)
    before = load_file(weights)
    assert {name for name in before if not torch.equal(before[name], started[name])} == {"fc.weight", "fc.bias"}


def test_weights_of_another_model_are_refused(data, weights, tmp_path):
    with pytest.raises(GlocalError, match=r"vit_micro|model\.safetensors"):
        compare(data, finetuning(weights, "vit_micro"), tmp_path)


def test_weights_with_a_layer_missing_are_refused(data, weights, tmp_path):
    part = {name: tensor for name, tensor in load_file(weights).items() if not name.startswith("conv1")}
    save_file(part, tmp_path / "part.safetensors")
    asked = settings(
        ["resnet_micro"], "1ep", 1, mode="finetune", weights={"resnet_micro": tmp_path / "part.safetensors"}
    )
    with pytest.raises(GlocalError, match=r"part\.safetensors"):
        compare(data, asked, tmp_path / "out")


def test_a_file_that_is_no_checkpoint_is_refused(data, tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"not a checkpoint")
    asked = settings(
        ["resnet_micro"], "1ep", 1, mode="finetune", weights={"resnet_micro": tmp_path / "bad.safetensors"}
    )
    with pytest.raises(GlocalError, match=r"from .*bad\.safetensors"):
        compare(data, asked, tmp_path / "out")
