"""Analysis of the trained models of a comparison: correct, kept, and without harm to other results."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

import glocal.comparison.analysis as analyzer
from glocal.analysis import attention, locality
from glocal.comparison import compare, pictures
from glocal.comparison.analysis import PARTS, look_into
from glocal.comparison.settings import Run
from glocal.data.transforms import Normalize
from glocal.errors import GlocalError
from glocal.models.creation import create
from glocal.models.io import ModelConfig, load_model, save_model
from glocal.training import TrainingError
from glocal.training.loader import Batch
from glocal.training.trainer import Trainer
from tests.comparison.asking import model_files, settings
from tests.comparison.test_job import Watcher
from tests.shapes import CLASSES, data_source, drawings, image_set

MODELS = ("resnet_micro", "vit_micro")


def asked():
    return settings(MODELS, "8ep", seeds=1)


class Onlooker(Watcher):
    """Keeps what is looked into, and may stop the comparison there."""

    def __init__(self, stop_at=None):
        super().__init__()
        self.stop_looking_at, self.looked = stop_at, []

    def look(self, run, share):
        self.looked.append((run.id, share))
        if run.id == self.stop_looking_at and share > 0.5:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def data():
    return data_source()


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
    """A comparison whose models nobody looked into, trained until their answers rest on something."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("glocal.comparison.costs.TIMING_SECONDS", 0.02)
        out = tmp_path_factory.mktemp("plain")
        return compare(data, asked(), out), out


@pytest.fixture(scope="module")
def looked(data, plain, tmp_path_factory):
    """The same, resumed with a look into its models: (results, folder, what was told)."""
    out, watcher = tmp_path_factory.mktemp("looked") / "out", Onlooker()
    shutil.copytree(plain[1], out)
    return compare(data, asked(), out, resume=True, analyze=True, observer=watcher), out, watcher


@pytest.fixture
def again(looked, tmp_path):
    """A copy of the folder, to change."""
    shutil.copytree(looked[1], tmp_path / "out")
    return tmp_path / "out"


def resume(data, out, watcher=None):
    return compare(data, asked(), out, resume=True, analyze=True, observer=watcher)


def found(results):
    """What was found, without the time it took."""
    return [{**model, "seconds": 0} for model in results["analysis"]["models"]]


def parts(results, model):
    return next(entry["parts"] for entry in results["analysis"]["models"] if entry["model"] == model)


def test_it_is_added_without_training_or_changing_anything(plain, looked):
    results, out, watcher = looked
    assert "analysis" not in plain[0]
    assert not watcher.started
    assert {**results, "created": "", "analysis": 0} == {**plain[0], "created": "", "analysis": 0}
    assert model_files(out) == model_files(plain[1])
    assert (out / "plan.json").read_text() == (plain[1] / "plan.json").read_text()
    assert watcher.published == [json.loads(json.dumps(results))]
    assert len(json.dumps(results["analysis"])) < 40_000


def test_progress_is_told(looked):
    _, _, watcher = looked
    assert list(dict.fromkeys(run_id for run_id, _ in watcher.looked)) == [f"{model}-f1-s0" for model in MODELS]
    for model in MODELS:
        shares = [share for run_id, share in watcher.looked if run_id == f"{model}-f1-s0"]
        assert shares[0] == 0
        assert shares[-1] == 1
        assert shares == sorted(shares)
        assert len(shares) > 20
    assert [text for text in watcher.said if "analyzed in" in text and "failed" not in text] == watcher.said


def test_the_model_is_asked_as_it_was_tested(looked, data):
    """Its accuracy on the images as they are is that of its record, which comes from other code."""
    results = looked[0]
    for run in results["runs"]:
        of_model = parts(results, run["model"])["robustness"]
        assert of_model["images"] == len(data.val)
        assert of_model["labelled"]
        assert of_model["clean"] == pytest.approx(run["top1"])
        assert run["top1"] > 0.4
        losses = [of_model["clean"] - curve["score"][-1] for curve in of_model["curves"]]
        assert max(losses) > 0.1


def test_results_are_those_of_the_analyses(looked, data):
    results, out, _ = looked
    order = np.random.default_rng(0).permutation(len(data.val))
    assert results["analysis"]["example"] == data.val.paths[order[0]]
    pixels = np.stack([np.asarray(data.val.image(i)) for i in order.tolist()])
    for model in MODELS:
        saved = load_model(out / "runs" / f"{model}-f1-s0")
        images = Normalize(saved.mean, saved.std)(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        labels = torch.from_numpy(data.val.labels[order])
        groups = locality(saved.model, images, labels).groups
        own = parts(results, model)
        assert [(g["name"], g["operations"]) for g in own["locality"]] == [(g.name, g.operations) for g in groups]
        assert [g["changed"] for g in own["locality"]] == pytest.approx([1 - g.kept for g in groups])
        if model == "vit_micro":
            points = attention(saved.model, images).points
            assert [p["distance"] for p in own["attention"]] == pytest.approx([p.distance.mean() for p in points])
        else:
            assert own["attention"] == []
    assert max(g["changed"] for model in MODELS for g in parts(results, model)["locality"]) > 0.2
    kinds = {model: {g["kind"] for g in parts(results, model)["locality"]} for model in MODELS}
    assert kinds == {"resnet_micro": {"convolution"}, "vit_micro": {"attention", "mlp"}}


def test_receptive_fields_are_small_pictures_that_widen(looked):
    for model in MODELS:
        points = parts(looked[0], model)["receptive_field"]
        assert [point["depth"] for point in points] == pytest.approx([1 / 3, 2 / 3, 1])
        for point in points:
            field = np.array(point["field"])
            assert field.shape == (16, 16)
            assert (field.min() >= 0, field.max()) == (True, 1)
    areas = {model: [point["area"] for point in parts(looked[0], model)["receptive_field"]] for model in MODELS}
    assert areas["resnet_micro"][0] < areas["resnet_micro"][-1]
    assert areas["resnet_micro"][0] < areas["vit_micro"][0]  # attention goes everywhere from the start


def test_what_is_there_is_not_looked_for_again_and_a_second_look_finds_the_same(looked, again, data, monkeypatch):
    watcher = Onlooker()
    assert found(resume(data, again, watcher)) == found(looked[0])
    assert not watcher.looked
    for path in again.glob("runs/*/analysis.json"):
        path.unlink()
    watcher = Onlooker()
    assert found(resume(data, again, watcher)) == found(looked[0])
    assert watcher.looked
    monkeypatch.setattr(analyzer, "SEED", 1)  # the same would be found if nothing were drawn
    (again / "runs/vit_micro-f1-s0/analysis.json").unlink()
    assert found(resume(data, again)) != found(looked[0])


def test_without_the_flag_what_was_found_stays(looked, again, data):
    results = compare(data, asked(), again, resume=True)
    assert results["analysis"] == looked[0]["analysis"]


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": "glocal.compare.analysis/0", "analysis": {}}'])
def test_a_damaged_file_is_looked_for_again(looked, again, data, content):
    (again / "runs/vit_micro-f1-s0/analysis.json").write_text(content)
    watcher = Onlooker()
    compare(data, asked(), again, resume=True, observer=watcher)
    assert any("vit_micro-f1-s0 is damaged" in text and "--analyze repeats it" in text for text in watcher.said)
    watcher = Onlooker()
    assert found(resume(data, again, watcher)) == found(looked[0])
    assert {run_id for run_id, _ in watcher.looked} == {"vit_micro-f1-s0"}
    assert any(text.startswith("The analysis of vit_micro-f1-s0 is damaged (") for text in watcher.said)


def test_a_part_that_fails_is_listed_loses_nothing_and_is_tried_again_alone(looked, again, data, monkeypatch):
    (again / "runs/vit_micro-f1-s0/analysis.json").unlink()
    real = PARTS["fourier"]

    def broken(model, *args):
        if type(model).__name__ == "VisionTransformer":
            raise RuntimeError("no more\nof this")
        return real(model, *args)

    monkeypatch.setitem(PARTS, "fourier", broken)
    watcher = Onlooker()
    results = resume(data, again, watcher)
    of_resnet, of_vit = results["analysis"]["models"]
    assert of_vit["failed"] == {"fourier": "RuntimeError: no more"}
    assert set(of_vit["parts"]) == set(PARTS) - {"fourier"}
    assert not of_resnet["failed"]
    assert watcher.said[-1].endswith("fourier failed (RuntimeError: no more)")
    assert results["verdict"] == looked[0]["verdict"]

    for name in set(PARTS) - {"fourier"}:
        monkeypatch.setitem(PARTS, name, None)  # none of them may be asked again
    monkeypatch.setitem(PARTS, "fourier", real)
    watcher = Onlooker()
    assert found(resume(data, again, watcher)) == found(looked[0])
    assert {run_id for run_id, _ in watcher.looked} == {"vit_micro-f1-s0"}


def test_a_part_that_is_not_for_a_model_is_not_tried_again(again, data, monkeypatch):
    def not_for_it(*_):
        raise GlocalError("model: expected another one")

    monkeypatch.setitem(PARTS, "locality", not_for_it)
    (again / "runs/vit_micro-f1-s0/analysis.json").unlink()
    entry = resume(data, again)["analysis"]["models"][1]
    assert (entry["without"], entry["failed"]) == ({"locality": "model: expected another one"}, {})
    watcher = Onlooker()
    resume(data, again, watcher)
    assert not watcher.looked


def test_a_model_that_cannot_be_loaded_is_listed_and_the_others_go_on(looked, again, data, monkeypatch):
    def load(path, task):
        if "resnet" in str(path):
            raise MemoryError("not enough")
        return load_model(path, task)

    monkeypatch.setattr(analyzer, "load_model", load)
    for path in again.glob("runs/*/analysis.json"):
        path.unlink()
    of_resnet, of_vit = resume(data, again)["analysis"]["models"]
    assert of_resnet["failed"] == dict.fromkeys(PARTS, "MemoryError: not enough")
    assert {**of_vit, "seconds": 0} == found(looked[0])[1]


def test_after_a_stop_the_models_that_were_looked_into_are_kept(looked, again, data):
    for path in again.glob("runs/*/analysis.json"):
        path.unlink()
    with pytest.raises(KeyboardInterrupt):
        resume(data, again, Onlooker("vit_micro-f1-s0"))
    watcher = Onlooker()
    assert found(resume(data, again, watcher)) == found(looked[0])
    assert {run_id for run_id, _ in watcher.looked} == {"vit_micro-f1-s0"}


def test_a_run_that_is_trained_again_is_looked_into_again(again, data):
    weights = again / "runs/vit_micro-f1-s0/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert [model["model"] for model in compare(
        data, asked(), again, resume=True
    )["analysis"]["models"]] == ["resnet_micro"]  # fmt: skip


def test_the_first_finished_seed_of_the_largest_share_is_taken(data, tmp_path, monkeypatch):
    fit = Trainer.fit

    def fail_at_seed_0(trainer, model, *args):
        if type(model).__name__ == "ResNet" and trainer.config.seed == 0:
            raise TrainingError("nan")
        return fit(trainer, model, *args)

    def quick(*_):
        return []

    monkeypatch.setattr(Trainer, "fit", fail_at_seed_0)
    for name in PARTS:
        monkeypatch.setitem(PARTS, name, quick)
    several = settings(MODELS, "1ep", seeds=2, fractions=[0.5, 1.0])
    models = compare(data, several, tmp_path, analyze=True)["analysis"]["models"]
    assert [model["run"] for model in models] == ["vit_micro-f1-s0", "resnet_micro-f1-s1"]


def test_images_are_drawn_over_the_whole_set_and_bad_ones_left_out():
    labels = np.repeat(np.arange(3), 400)  # sorted by class, as sets often are
    images = dataclasses.replace(image_set(1200, seed=1, name="val"), labels=labels)
    rows = analyzer._chosen(images)
    assert len(set(rows.tolist())) == 256
    assert np.bincount(labels[rows[: analyzer.INSIDE]], minlength=3).min() >= 5


def test_pictures_show_what_the_models_were_given(looked, data):
    results, out, _ = looked
    drawn = {key: np.asarray(image) for key, image in pictures(results, data, out).items() if "disturbed" in key}
    plain = np.asarray(data.val.image(data.val.paths.index(results["analysis"]["example"])))
    assert {one["picture"] for one in results["analysis"]["disturbed"]} == set(drawn)
    assert abs(drawn["disturbed: none"].astype(int) - plain).max() <= 1
    same = (abs(drawn["disturbed: occlusion"].astype(int) - plain).max(-1) <= 1).mean()
    assert same == pytest.approx(0.5, abs=0.05)
    shuffled = drawn["disturbed: shuffled patches"]
    assert sorted(shuffled[..., 0].ravel()) == pytest.approx(sorted(plain[..., 0].ravel()), abs=1)
    assert (abs(shuffled.astype(int) - plain) > 5).mean() > 0.3
    for name in ("low-frequency noise", "high-frequency noise"):
        assert abs(drawn[f"disturbed: {name}"].astype(int) - plain).mean() > 20


def test_it_is_for_classifiers(tmp_path):
    detectors = settings(["resnet_micro"], task="detection", recipe=None)
    with pytest.raises(GlocalError, match="analyze: expected a comparison of classifiers, got detection"):
        compare(None, detectors, tmp_path / "out", analyze=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "without"),
    [
        *((name, set()) for name in ("resnet10t", "convnext_atto", "pvt_v2_b0", "mobilenetv3_small_050")),
        ("densenet121", {"locality"}),  # joins its maps by concatenation
    ],
)
def test_any_model_of_timm(name, without, tmp_path):
    model = create(name, num_classes=3, image_size=64, seed=0)
    save_model(model, tmp_path, ModelConfig.of_classifier(model, classes=CLASSES, image_size=64))
    pixels, labels = drawings(12, seed=0, size=64)
    inputs = torch.from_numpy(pixels)[:, None].repeat(1, 3, 1, 1)
    batch = Batch(inputs, torch.from_numpy(labels), torch.zeros(12))
    entry = look_into(tmp_path, Run(name, 1.0, 0), batch, "cpu", None, lambda share: None)
    assert entry["failed"] == {}
    assert set(entry["without"]) == without
    assert set(entry["parts"]) == set(PARTS) - without
    json.dumps(entry, allow_nan=False)
