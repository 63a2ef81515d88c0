"""Predictions: what the model says, whatever the batches, the workers and the bad images beside."""

import json

import numpy as np
import pytest
import torch

from glocal.data.transforms import Normalize, resize_crop
from glocal.errors import GlocalError
from glocal.inference import PredictProgress, list_inputs, predict_files
from glocal.inference.answers import most_probable
from tests.inference.making import saved_model, write_images


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    root = tmp_path_factory.mktemp("job")
    return saved_model(root / "model"), list_inputs([str(write_images(root / "images", 20, bad=(4, 7)))])


def predict(saved, inputs, out=None, **kwargs):
    taken = []
    summary = predict_files(
        saved, inputs, out, **{"top_k": 3, "batch_size": 8, "workers": 0, **kwargs}, take=taken.append
    )
    return taken, summary


def test_against_the_model_image_by_image(job):
    saved, inputs = job
    taken, summary = predict(saved, inputs)
    assert (summary.total, summary.failed, summary.before) == (20, 2, 0)
    assert [prediction.path for prediction in taken] == list(inputs.paths)
    assert [i for i, prediction in enumerate(taken) if prediction.error] == [4, 7]
    prepare, seen = Normalize(saved.mean, saved.std), set()
    for i, prediction in enumerate(taken):
        if prediction.error:
            assert prediction.top == ()
            continue
        pixels = torch.tensor(resize_crop(inputs.image(i), saved.image_size, saved.crop_pct)).permute(2, 0, 1)
        with torch.no_grad():
            probs = saved.model(prepare(pixels[None])).double().softmax(1)[0]
        expected = sorted(zip(saved.classes, probs.tolist(), strict=True), key=lambda pair: -pair[1])
        assert [name for name, _ in prediction.top] == [name for name, _ in expected]
        assert [p for _, p in prediction.top] == pytest.approx([p for _, p in expected], abs=1e-6)
        seen.add(prediction.top[0][0])
    assert len(seen) > 1  # the test would see a model that says the same of all


def test_results_do_not_depend_on_how_they_are_read(job, tmp_path):
    saved, inputs = job
    files = {}
    for workers in (0, 1, 2):
        predict(saved, inputs, tmp_path / f"{workers}.jsonl", workers=workers)
        files[workers] = (tmp_path / f"{workers}.jsonl").read_bytes()
    assert files[0] == files[1] == files[2]


def test_a_stop_at_any_image_changes_no_bit(job, tmp_path):
    saved, inputs = job
    predict(saved, inputs, tmp_path / "whole.jsonl", batch_size=6)
    whole = (tmp_path / "whole.jsonl").read_bytes()
    for stop in (0, 1, 5, 6, 13, 19):
        out = tmp_path / f"{stop}.jsonl"
        with pytest.raises(KeyboardInterrupt):
            predict_files(saved, inputs, out, top_k=3, batch_size=6, workers=0, take=Stopping(stop))
        taken, summary = predict(saved, inputs, out, batch_size=6, resume=True)
        assert summary.before == stop + 1
        assert summary.failed == 2
        assert len(taken) == 19 - stop
        assert out.read_bytes() == whole


class Stopping:
    def __init__(self, stop):
        self.left = stop

    def __call__(self, _):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1


def test_another_job_is_not_gone_on_with(job, tmp_path):
    saved, inputs = job
    with pytest.raises(KeyboardInterrupt):
        predict_files(saved, inputs, tmp_path / "o.jsonl", batch_size=8, workers=0, take=Stopping(9))
    other = saved_model(tmp_path / "other", seed=1)
    fewer = list_inputs(inputs.paths[:19])
    for arguments, name in [
        ((other, inputs), "model"),
        ((saved, fewer), "inputs"),
        ((saved, inputs), "batch_size"),
        ((saved, inputs), "top_k"),
    ]:
        changed = {"batch_size": 4} if name == "batch_size" else {"top_k": 1} if name == "top_k" else {}
        with pytest.raises(GlocalError, match=rf"started with other settings:\n.*{name}: was"):
            predict(*arguments, tmp_path / "o.jsonl", resume=True, **changed)
    assert predict(saved, inputs, tmp_path / "o.jsonl", resume=True)[1].before == 10


def test_progress_counts_up(job):
    saved, inputs = job
    seen: list[PredictProgress] = []
    predict(saved, inputs, progress=seen.append)
    assert [(p.done, p.total, p.failed) for p in seen] == [(8, 20, 2), (16, 20, 2), (20, 20, 2)]
    assert all(p.images_per_s > 0 for p in seen)


def test_top_k_ends_at_the_classes(job, tmp_path):
    saved, inputs = job
    assert len(predict(saved, inputs, top_k=100)[0][0].top) == 3
    assert len(predict(saved, inputs, top_k=1)[0][0].top) == 1
    predict(saved, inputs, tmp_path / "o.csv", top_k=100)
    assert (tmp_path / "o.csv").read_text().splitlines()[0].count("class") == 3


def test_all_bad_is_no_crash(tmp_path):
    saved = saved_model(tmp_path / "model", name="vit_micro")
    inputs = list_inputs([str(write_images(tmp_path / "bad", 3, bad=(0, 1, 2)))])
    taken, summary = predict(saved, inputs, tmp_path / "o.jsonl")
    assert summary.failed == summary.total == 3
    assert all(prediction.error for prediction in taken)
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [line["top"] for line in lines] == [[], [], []]


def test_of_equal_probabilities_the_first_class_is_first():
    best, probabilities = most_probable(np.array([[1.0, 3.0, 3.0, 1.0]], np.float32), 3)
    assert best.tolist() == [[1, 2, 0]]
    assert probabilities.sum() < 1
    assert (np.diff(probabilities) <= 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_k": 0}, "top-k: expected at least 1, got 0"),
        ({"batch_size": 0}, "batch-size: expected at least 1"),
        ({"workers": -1}, "workers: expected at least 0"),
        ({"engine": "spark"}, "engine: expected one of local, ray, got 'spark'"),
    ],
)
def test_bad_arguments_are_said(job, arguments, message):
    with pytest.raises(GlocalError, match=message):
        predict(*job, **arguments)


@pytest.mark.parametrize(("classes", "top_k"), [(3, 3), (50, 5), (50, 1), (2, 5)])
def test_the_most_probable_are_those_of_a_full_sort(classes, top_k):
    logits = np.random.default_rng(0).integers(-3, 3, size=(40, classes)).astype(np.float32)  # many ties
    best, probabilities = most_probable(logits, top_k)
    expected = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
    np.testing.assert_array_equal(best, expected)
    assert (np.diff(probabilities, axis=1) <= 0).all()
