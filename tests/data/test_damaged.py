"""Damaged annotations, label maps and images, one of each way; benchmarks/damaged_annotations.py has hundreds."""

from collections import Counter

import numpy as np
import pytest
from benchmarks import damaged_annotations as damaged

from glocal.data import annotated, load_detection


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("GLOCAL_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
def test_each_way_of_damage_is_an_error_or_a_listed_skip(tmp_path):
    found = [damaged.outcome(*case) for seed in (1, 2) for case in damaged.cases(tmp_path / str(seed), 1, seed)]
    assert len(found) == 2 * len(damaged.WAYS) >= 60
    assert [one.text for one in found if one.kind == "traceback"] == []
    assert max(one.seconds for one in found) < damaged.SLOW
    counts = Counter(one.kind for one in found)
    assert counts["clear error"] > 10
    assert counts["listed skip"] > 30


def test_undamaged_data_is_loaded(tmp_path):
    damaged.make(tmp_path)
    for form in damaged.PLACES:
        assert damaged.outcome("none", form, tmp_path / form).kind == "loaded"


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
def test_a_reader_that_trusts_is_noticed(tmp_path, monkeypatch):
    """Boxes are taken as they are, or a mistake is not one of ours."""
    damaged.make(tmp_path)
    rng = np.random.default_rng(0)
    with damaged.opened(tmp_path / "coco") as content:
        content["annotations"][0]["bbox"] = [5, 5, -3, 9]
    assert damaged.outcome("box", "coco", tmp_path / "coco").kind == "listed skip"
    with monkeypatch.context() as patched:
        patched.setattr("glocal.data.coco.clip_box", lambda box, width, height: (box, False))
        assert "AssertionError" in damaged.outcome("box", "coco", tmp_path / "coco").text
    with monkeypatch.context() as patched:
        patched.setattr(annotated, "measure_files", lambda *args, **kwargs: {})
        assert "KeyError" in damaged.outcome("box", "coco", tmp_path / "coco").text

    def looking(form, root):
        damaged.assert_clear(f"\x1b[2J {rng}")
        return load_detection(root)

    assert damaged.outcome("box", "coco", tmp_path / "coco", looking).kind == "traceback"


def test_the_commands_say_what_is_damaged(tmp_path):
    name = "COCO: truncated"
    case = next(case for case in damaged.cases(tmp_path, 1, 0) if case[0] == name)
    found = list(damaged.commands(*case, tmp_path / "log"))
    assert [code for _, code, _ in found] == [2, 2, 2]
    for command, _, said in found:
        assert "Traceback" not in said
        assert "Error: data: expected annotations as JSON in" in said, command


def test_the_page_has_its_figures():
    row = {"cases": 3, "clear error": 1, "listed skip": 1, "loaded": 1, "traceback": 0, "longest": 0.25}
    ways = dict.fromkeys(damaged.WAYS, row)
    commands = {"check": {"runs": 2, "codes": {"1": 1, "2": 1}, "tracebacks": 0}}
    text = damaged.page({
        "seed": 0, "total": row, "ways": ways, "commands": commands, "command": "python x", "seconds": 1.0,
        "date": "2026-01-01", "environment": {},
    })  # fmt: skip
    assert "| COCO: truncated | 3 | 1 | 1 | 1 | 0 | 0.25 |" in text
    assert "| `glocal check` | 2 | 1: 1, 2: 1 | 0 |" in text
