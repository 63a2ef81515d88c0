"""What is written is what others read: COCO's results by pycocotools, label maps by Pillow and by us."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from glocal.data import ImageDetections, load_detection, open_label_map, write_coco_results, write_label_map
from glocal.data.predictions import voc_palette
from glocal.errors import GlocalError
from tests.data.annotating import coco_folder
from tests.data.making import encoded

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")


def evaluated(annotations, results, kind) -> float:
    truth = COCO(annotations)
    evaluation = COCOeval(truth, truth.loadRes(str(results)), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[0]


@pytest.mark.parametrize("kinds", [("polygon", "text"), ("box",)])
def test_the_truth_written_as_predictions_is_perfect(tmp_path, monkeypatch, kinds):
    """Category and image ids come back as the data has them: pycocotools finds everything."""
    monkeypatch.setenv("GLOCAL_CACHE", str(tmp_path / "cache"))
    root = coco_folder(tmp_path / "data", [2], [3, 0, 5, 1], kinds=kinds)
    source = load_detection(root, progress=False)
    predictions = [
        ImageDetections(
            sample.image_id, sample.boxes, np.linspace(0.9, 0.8, len(sample.boxes)), sample.labels, sample.masks
        )
        for sample in source.val
    ]
    write_coco_results(tmp_path / "results.json", predictions, source.category_ids)
    annotations = root / "annotations/instances_val2017.json"
    assert evaluated(annotations, tmp_path / "results.json", "bbox") == pytest.approx(1)
    if kinds != ("box",):
        assert evaluated(annotations, tmp_path / "results.json", "segm") == pytest.approx(1)
    entries = json.loads((tmp_path / "results.json").read_text())
    assert len(entries) == 9
    assert {entry["category_id"] for entry in entries} <= {3, 7, 90}
    write_coco_results(tmp_path / "wrong.json", predictions, source.category_ids[::-1])
    assert evaluated(annotations, tmp_path / "wrong.json", "bbox") < 0.7


def test_no_predictions_are_an_empty_list(tmp_path):
    nothing = ImageDetections("a", np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=np.int64))
    write_coco_results(tmp_path / "results.json", [nothing], [1])
    assert json.loads((tmp_path / "results.json").read_text()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": np.zeros((2, 4))}, r"expected boxes \(N, 4\), scores \(N,\).*got \(2, 4\), \(1,\), \(1,\)"),
        ({"boxes": np.zeros(4)}, r"got \(4,\)"),
        ({"masks": np.zeros((2, 5, 5), dtype=bool)}, r"\(2, 5, 5\)"),
        ({"boxes": np.full((1, 4), np.nan)}, "finite boxes and scores for image 7"),
        ({"scores": np.full(1, np.inf)}, "finite boxes and scores"),
        ({"labels": np.array([3])}, "expected labels 0 to 2, got 3 to 3"),
        ({"labels": np.array([-1])}, "expected labels 0 to 2, got -1"),
    ],
)
def test_predictions_that_do_not_fit_are_named(tmp_path, changes, message):
    values = {"boxes": np.ones((1, 4)), "scores": np.ones(1), "labels": np.zeros(1, dtype=np.int64)} | changes
    with pytest.raises(GlocalError, match=message):
        write_coco_results(tmp_path / "results.json", [ImageDetections(7, **values)], [1, 2, 3])
    assert not (tmp_path / "results.json").exists()


def test_a_label_map_is_read_back_and_has_colours(tmp_path):
    rng = np.random.default_rng(0)
    for dtype in (np.uint8, np.int64, np.int32):
        labels = rng.integers(0, 256, (13, 29)).astype(dtype)
        write_label_map(tmp_path / "map.png", labels)
        assert np.array_equal(open_label_map(tmp_path / "map.png"), labels)
        with Image.open(tmp_path / "map.png") as image:
            assert image.mode == "P"
            assert np.array_equal(np.asarray(image.convert("RGB")), voc_palette()[labels])
    write_label_map(tmp_path / "map.png", labels % 2, np.array([[1, 2, 3], [250, 0, 9]]))
    with Image.open(tmp_path / "map.png") as image:
        assert sorted(map(tuple, np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0))) == [
            (1, 2, 3),
            (250, 0, 9),
        ]


def test_the_palette_is_that_of_pascal_voc():
    assert voc_palette()[[0, 1, 2, 3, 15, 20, 255]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
        [192, 128, 128],
        [0, 64, 128],
        [224, 224, 192],
    ]
    assert len(np.unique(voc_palette(), axis=0)) == 256


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((2, 2, 3), dtype=np.uint8), r"expected \(H, W\) integers, got uint8 of shape \(2, 2, 3\)"),
        (np.zeros((2, 2)), "got float64"),
        (np.zeros((0, 2), dtype=np.int64), r"shape \(0, 2\)"),
        (np.full((2, 2), 256), "expected 0 to 255, got 256 to 256"),
        (np.full((2, 2), -1), "expected 0 to 255, got -1"),
    ],
)
def test_label_maps_that_do_not_fit_are_named(tmp_path, labels, message):
    with pytest.raises(GlocalError, match=message):
        write_label_map(tmp_path / "map.png", labels)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(np.array([[0, 7, 255]], np.uint8)), [0, 7, 255]),
        (Image.fromarray(np.array([[0, 300, 65535]], np.uint16)), [0, 300, 65535]),
        (Image.fromarray(np.array([[0, 255, 0]], np.uint8)).convert("1"), [0, 1, 0]),
    ],
)
def test_values_are_taken_as_they_are_stored(image, expected):
    labels = open_label_map(encoded(image, "PNG"))
    assert labels.tolist() == [expected]
    assert labels.flags.writeable


def test_what_has_colours_or_loss_is_no_label_map():
    grey = Image.fromarray(np.zeros((4, 4), np.uint8))
    with pytest.raises(GlocalError, match="expected a palette or a grey PNG, got one of mode RGB"):
        open_label_map(encoded(grey.convert("RGB"), "PNG"))
    with pytest.raises(GlocalError, match="not a readable PNG"):
        open_label_map(encoded(grey, "JPEG"))
    with pytest.raises(GlocalError, match="got one of mode LA"):
        open_label_map(encoded(grey.convert("LA"), "PNG"))


def test_predictions_can_be_sent_between_processes():
    one = ImageDetections(1, np.ones((1, 4)), np.ones(1), np.zeros(1, dtype=np.int64))
    assert np.array_equal(pickle.loads(pickle.dumps(one)).boxes, one.boxes)
