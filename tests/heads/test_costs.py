"""Parameters and MACs of assembled models are the published ones: docs/results/detectors.md."""

import json

import pytest
from benchmarks.detectors import RESULT, ROWS, measure

QUICK = [row for row in ROWS if (row.kind, row.backbone) in {
    ("mask_rcnn", "conformer_small_patch32"), ("cascade_rcnn", "cat_small"), ("retinanet", "glocal_resnet101"),
    ("atss", "cat_small"), ("semantic_fpn", "cat_small"), ("upernet", "glocal_resnet101"),
}]  # fmt: skip


@pytest.mark.parametrize("row", QUICK, ids=lambda row: f"{row.kind}-{row.backbone}")
def test_a_row_of_the_table(row):
    ours = measure(row)
    assert ours["our_gmacs_as_published"] == pytest.approx(row.gmacs, rel=0.01)
    assert ours["our_params_m"] == pytest.approx(row.params_m, rel=0.04 if row.kind == "upernet" else 0.01)
    (kept,) = [
        r
        for r in json.loads(RESULT.with_suffix(".json").read_text())
        if (r["kind"], r["backbone"]) == (row.kind, row.backbone)
    ]
    assert kept["our_gmacs"] == pytest.approx(ours["our_gmacs"], rel=0.02)


def test_all_rows_are_within_two_percent():
    rows = json.loads(RESULT.with_suffix(".json").read_text(encoding="utf-8"))
    assert [(row["kind"], row["backbone"]) for row in rows] == [(row.kind, row.backbone) for row in ROWS]
    for row in rows:
        assert row["our_gmacs_as_published"] == pytest.approx(row["gmacs"], rel=0.02), row
