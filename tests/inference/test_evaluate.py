"""Evaluation: classes by their names, scores that a loop gives too."""

import dataclasses
import io
import json
import tarfile

import numpy as np
import pytest
import torch

import glocal
from glocal.data import load_data, open_image
from glocal.data.transforms import Normalize, resize_crop
from glocal.errors import GlocalError
from glocal.inference import evaluate, evaluation_sets
from glocal.metrics.classification import Outcomes, score
from glocal.models.io import ModelConfig, load_model, save_model
from glocal.tasks import ClassificationTask
from glocal.tasks.base import labels_in_model
from glocal.training.budget import Budget
from glocal.training.config import TrainConfig
from glocal.training.trainer import Trainer
from tests.inference.making import saved_model
from tests.shapes import CLASSES, data_source, write_folder


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOCAL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model that has learned the shapes, its folder, and a folder of images it has not seen."""
    root = tmp_path_factory.mktemp("trained")
    source = data_source(120, 30)
    torch.manual_seed(0)
    model = glocal.create_model("resnet_micro", num_classes=3, img_size=32)
    config = TrainConfig.of(name="resnet_micro", image_size=32, batch_size=20, lr=3e-3)
    task = ClassificationTask.for_data(source, config)
    result = Trainer(task, config, Budget.parse("8ep"), macs=1).fit(model, *task.datasets())
    task.save(result.model, root / "model")
    write_folder(root / "images", 60, seed=7)
    return root / "model", root / "images"


def measured(model, data, **kwargs):
    options = {name: kwargs.pop(name) for name in ("part", "on_error", "split_seed") if name in kwargs}
    sets = evaluation_sets(data, **options, progress=False, workers=1)
    on_error = options.get("on_error", "stop")
    results = evaluate(load_model(model), sets, **{"workers": 0, "batch_size": 7, "on_error": on_error, **kwargs})
    json.dumps(results, allow_nan=False)
    return results


def test_scores_are_those_of_a_loop(trained):
    model, folder = trained
    saved, results = load_model(model), measured(model, folder, part="all")
    assert results["images"] == 60
    assert results["top1"] > 0.8
    prepare = Normalize(saved.mean, saved.std)
    logits, labels = [], []
    for label, name in enumerate(CLASSES):
        for file in sorted((folder / name).iterdir()):
            pixels = torch.tensor(resize_crop(open_image(file), 32)).permute(2, 0, 1)[None]
            with torch.no_grad():
                logits.append(saved.model(prepare(pixels)).numpy())
            labels.append(label)
    expected = score(np.concatenate(logits), np.array(labels))
    assert results["top1"] == expected.top1
    assert results["nll"] == pytest.approx(expected.nll, rel=1e-5)
    assert results["ece"] == pytest.approx(expected.ece, abs=1e-5)
    assert results["top5"] is None
    assert [entry["top1"] for entry in results["per_class"]] == expected.per_class.tolist()
    assert [entry["images"] for entry in results["per_class"]] == [20, 20, 20]
    assert sum(pair["count"] for pair in results["confusions"]) == len(results["mistakes"])
    assert sum(bin_["count"] for bin_ in results["reliability"]) == 60
    gaps = [b["count"] * abs(b["confidence"] - b["top1"]) for b in results["reliability"] if b["count"]]
    assert sum(gaps) / 60 == pytest.approx(results["ece"])
    assert results["model"]["digest"] == saved.digest


def test_classes_are_found_by_name_not_by_number(trained, tmp_path):
    """Names of classes in another order, in the data or in the model, change nothing."""
    model, folder = trained
    plain = measured(model, folder, part="all")
    saved = load_model(model)
    order = [2, 0, 1]
    with torch.no_grad():
        saved.model.fc.weight.copy_(saved.model.fc.weight[order].clone())
        saved.model.fc.bias.copy_(saved.model.fc.bias[order].clone())
    save_model(
        saved.model,
        tmp_path / "turned",
        ModelConfig.of_classifier(saved.model, classes=[CLASSES[i] for i in order], image_size=32),
    )
    turned = measured(tmp_path / "turned", folder, part="all")
    assert turned["top1"] == plain["top1"] > 0.8
    by_class = {entry["class"]: entry["top1"] for entry in plain["per_class"]}
    assert {entry["class"]: entry["top1"] for entry in turned["per_class"]} == by_class
    # and were the names not looked at, the accuracy would be another
    save_model(saved.model, tmp_path / "wrong", ModelConfig.of_classifier(saved.model, classes=CLASSES, image_size=32))
    assert measured(tmp_path / "wrong", folder, part="all")["top1"] < 0.5


def test_parts(trained):
    model, folder = trained
    counts = {part: measured(model, folder, part=part)["images"] for part in ("train", "val", "all")}
    assert counts == {"train": 48, "val": 12, "all": 60}
    one, other = (measured(model, folder, split_seed=seed) for seed in (0, 1))
    assert one["data"]["split"] != other["data"]["split"]
    source = load_data(folder, split_seed=1, progress=False)
    assert other["images"] == len(source.val)


def test_all_takes_a_folder_that_training_could_not_split(trained, tmp_path):
    model, folder = trained
    (tmp_path / "few" / "down").mkdir(parents=True)
    image = next((folder / "down").iterdir())
    (tmp_path / "few" / "down" / "one.png").write_bytes(image.read_bytes())
    results = measured(model, tmp_path / "few", part="all")
    assert results["images"] == 1
    assert results["missing_classes"] == ["across", "rings"]
    assert results["per_class"][0] == {"class": "across", "images": 0, "top1": None}
    assert results["worst_classes"] == ["down"]
    with pytest.raises(GlocalError, match="at least 2"):
        measured(model, tmp_path / "few")


def test_an_unknown_class_is_named_with_the_nearest(trained, tmp_path):
    model, folder = trained
    for name, renamed in (("down", "downs"), ("rings", "\x1b[2J")):
        (tmp_path / "other" / renamed).mkdir(parents=True)
        (tmp_path / "other" / renamed / "0.png").write_bytes(next((folder / name).iterdir()).read_bytes())
    with pytest.raises(GlocalError) as error:
        measured(model, tmp_path / "other", part="all")
    assert "downs; nearest: down" in str(error.value)
    assert "\\x1b[2J" in str(error.value)
    assert "\x1b" not in str(error.value)


def test_bad_images_stop_or_are_listed(trained, tmp_path):
    model, _ = trained
    write_folder(tmp_path / "bad", 12, seed=3)
    (tmp_path / "bad" / "down" / "bad.png").write_bytes(b"no image")
    for part in ("all", "val"):
        with pytest.raises(GlocalError, match=r"got 1 unreadable\n  down/bad\.png"):
            measured(model, tmp_path / "bad", part=part)
    results = measured(model, tmp_path / "bad", part="all", on_error="skip")
    assert results["images"] == 12
    assert results["skipped"] == [
        {"path": "down/bad.png", "reason": "not a readable JPEG, PNG, WebP, BMP, TIFF or GIF"}
    ]


def test_images_that_go_bad_after_they_were_checked(trained, tmp_path):
    model, _ = trained
    write_folder(tmp_path / "bad", 12, seed=3)
    sets = evaluation_sets(tmp_path / "bad", "all", progress=False, workers=1)
    (tmp_path / "bad" / sets.sets[0].paths[3]).write_bytes(b"")
    with pytest.raises(GlocalError, match=r"across/009\.png: empty file; --on-error skip"):
        evaluate(load_model(model), sets, workers=0)
    results = evaluate(load_model(model), sets, workers=0, on_error="skip")
    assert results["images"] == 11
    assert results["skipped"] == [{"path": "across/009.png", "reason": "empty file"}]


def test_no_readable_image(trained, tmp_path):
    model, _ = trained
    write_folder(tmp_path / "photos", 12, seed=3)
    sets = evaluation_sets(tmp_path / "photos", "all", progress=False, workers=1)
    first = sets.sets[0].paths[0]
    for path in sets.sets[0].paths:
        (tmp_path / "photos" / path).write_bytes(b"")
    with pytest.raises(GlocalError) as error:
        evaluate(load_model(model), sets, workers=0, on_error="skip")
    assert str(error.value) == (
        f"data: expected readable images in {tmp_path / 'photos'}, got 12 unreadable, such as {first}: empty file; "
        "repair the files, or give others"
    )


def test_no_image(trained):
    model, data = trained
    sets = evaluation_sets(data, "all", progress=False, workers=1)
    empty = dataclasses.replace(sets, sets=(sets.sets[0].subset(np.arange(0)),))
    with pytest.raises(GlocalError, match=r"expected readable images in .*, got an empty set; repair the files, or"):
        evaluate(load_model(model), empty, workers=0)


def test_the_others_keep_their_outcomes_beside_an_unreadable_image(trained, tmp_path):
    model, _ = trained
    write_folder(tmp_path / "bad", 12, seed=3)
    sets = evaluation_sets(tmp_path / "bad", "all", progress=False, workers=1)
    whole = evaluate(load_model(model), sets, workers=0)
    wrong = {mistake["path"]: mistake for mistake in whole["mistakes"]}
    gone = next(path for path in sets.sets[0].paths if path not in wrong)
    (tmp_path / "bad" / gone).write_bytes(b"")
    results = evaluate(load_model(model), sets, workers=0, on_error="skip", batch_size=5)
    assert {mistake["path"] for mistake in results["mistakes"]} == {*wrong}
    for mistake in results["mistakes"]:
        assert mistake["confidence"] == pytest.approx(wrong[mistake["path"]]["confidence"], rel=1e-5)
    assert results["top1"] == pytest.approx((12 * whole["top1"] - 1) / 11)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_outputs_that_are_not_finite(trained, tmp_path, value):
    saved = load_model(trained[0])
    with torch.no_grad():
        saved.model.fc.bias[-1] = value  # -inf: of a wrong class, it leaves the loss finite
    sets = evaluation_sets(trained[1], "all", progress=False, workers=1)
    with pytest.raises(GlocalError, match=r"resnet_micro: its outputs for images of .* are not finite"):
        evaluate(saved, sets, workers=0)


def test_builtin_data(tmp_path):
    sets = evaluation_sets("fashion-mini")
    saved = saved_model(tmp_path, classes=sets.sets[0].classes[::-1], size=28)
    results = evaluate(saved, sets, workers=0)
    assert results["images"] == 2000
    assert results["top1"] <= results["top5"] <= 1
    assert results["missing_classes"] == []
    assert len(evaluation_sets("fashion-mini", "all").sets) == 2


def test_shards(trained, tmp_path):
    model, folder = trained
    with tarfile.open(tmp_path / "test-0.tar", "w") as tar:
        for i, name in enumerate(CLASSES):
            for file in sorted((folder / name).iterdir())[:4]:
                tar.add(file, f"{name}-{file.name}")
                label = tarfile.TarInfo(f"{name}-{file.stem}.cls")
                label.size = 1
                tar.addfile(label, io.BytesIO(str(i).encode()))
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    results = measured(model, tmp_path / "test-0.tar", part="all")
    assert results["images"] == 12
    assert results["top1"] > 0.7


def test_words_that_are_not_known():
    for options, message in [({"part": "vall"}, "nearest: val"), ({"on_error": "ignore"}, "on-error: expected one of")]:
        with pytest.raises(GlocalError, match=message):
            evaluation_sets("fashion-mini", **options)


def test_labels_are_found_by_name():
    assert labels_in_model(["a", "b", "c"], ["b", "a"]) == [1, 0]
    with pytest.raises(GlocalError, match="and 3 more"):
        labels_in_model(["a"], [f"x{i}" for i in range(8)])


def test_outcomes_join_in_order():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 7)), rng.integers(7, size=50)
    whole = Outcomes.of(logits, labels)
    parts = Outcomes.join([Outcomes.of(logits[:20], labels[:20]), Outcomes.of(logits[20:], labels[20:])])
    assert all(np.array_equal(getattr(whole, name), getattr(parts, name)) for name in vars(whole))
    assert len(Outcomes.join([])) == 0
    with pytest.raises(ValueError, match="at least one image"):
        Outcomes.join([]).score(7)
