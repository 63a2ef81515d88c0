"""The fields of published JSON: types, pages and files say the same."""

import dataclasses
import json
import re
from pathlib import Path
from typing import get_type_hints, is_typeddict

import pytest

from glocal import schema
from glocal.bench.limits import Limits
from glocal.bench.suite import BenchSettings
from glocal.cli._bench_display import CSV_COLUMNS
from glocal.data.objects import SkippedObject
from glocal.metrics.classification import Bin
from glocal.metrics.coco import Precision
from glocal.recommend.rule import Finding
from glocal.training import CurvePoint
from tests.fields import faults, parts_of

DOCS = Path(__file__).parents[1] / "docs"
SHARED = "results-schema.md"
NAMES = (SHARED, "training.md", "inference.md", "claims.md", "recommend.md", "bench.md")
PAGES = {name: (DOCS / name).read_text(encoding="utf-8") for name in NAMES}
TABLE = re.compile(r"<!-- fields: (\w+) -->\n\| key .*\n\| --- .*\n((?:\|.*\n)+)")
TABLES = {
    name: (page, re.findall(r"`(\w+)`", "".join(row.split("|")[1] for row in rows.splitlines())))
    for page, text in PAGES.items()
    for name, rows in TABLE.findall(text)
}
FRAGMENTS = {
    "Scores", "RunScores", "RunIdentity", "ModelCosts", "ClassCounts", "CompareExtras", "TaskDescription", "Evaluation",
    "ClaimTexts", "DecidedClaim", "CandidateCosts",
}  # fmt: skip
"""Types that others extend; their fields are in the tables of those."""


def nested(field, page):
    """The keys that a page, or else the shared one, lists for a field, as in ``field: [{a, b}]``."""
    pattern = rf"`{field}: \[?{{([\w,\s]+)}}"
    listed = re.findall(pattern, PAGES[page]) or re.findall(pattern, PAGES[SHARED])
    return [set(re.split(r",\s*", keys)) for keys in listed]


@pytest.mark.parametrize("name", TABLES)
def test_a_page_lists_the_fields_of_its_type_each_once(name):
    page, fields = TABLES[name]
    hints = get_type_hints(getattr(schema, name))
    assert sorted(fields) == sorted(hints)
    for field, hint in hints.items():
        for part in parts_of(hint):
            if part.__name__ not in TABLES and part is not schema.RecordedRun:
                assert nested(field, page), field
                assert all(keys == set(get_type_hints(part)) for keys in nested(field, page)), field


def test_every_type_is_on_a_page():
    types = {name: of for name, of in vars(schema).items() if is_typeddict(of)}
    inside = {part.__name__ for of in types.values() for hint in get_type_hints(of).values() for part in parts_of(hint)}
    assert set(types) == set(TABLES) | inside | FRAGMENTS


def test_a_record_has_its_run_without_costs():
    of_record, of_entry = (set(get_type_hints(of)) for of in (schema.RecordedRun, schema.RunEntry))
    assert of_record == of_entry - set(get_type_hints(schema.ModelCosts)) | {"skipped"}


@pytest.mark.parametrize(
    ("row", "written"),
    [
        (schema.CurveRow, CurvePoint),
        (schema.PrecisionScores, Precision),
        (schema.SkippedImage, SkippedObject),
        (schema.ReliabilityBin, Bin),
        (schema.BenchOptions, BenchSettings),
        (schema.MachineLimits, Limits),
        (schema.NeedFinding, Finding),
    ],
)
def test_rows_have_the_fields_of_what_they_are_written_from(row, written):
    assert set(get_type_hints(row)) == {field.name for field in dataclasses.fields(written)}


def test_the_table_of_a_benchmark_has_all_fields_of_a_row_but_its_name():
    assert sorted(CSV_COLUMNS) == sorted(get_type_hints(schema.BenchRow).keys() - {"name"})


def test_a_published_comparison_has_these_fields():
    results = json.loads((DOCS / "results" / "fashion-mnist" / "results.json").read_text(encoding="utf-8"))
    assert faults(results, schema.CompareResults) == []
    results["runs"][0]["top_1"] = results["runs"][0].pop("model")
    assert faults(results, schema.CompareResults) == [".runs[0].top_1: unknown", ".runs[0].model: missing"]


@pytest.mark.parametrize("budget", ["quick", "default"])
def test_published_claims_have_these_fields(budget):
    results = json.loads((DOCS / "results" / f"claims-{budget}" / "claims.json").read_text(encoding="utf-8"))
    assert faults(results, schema.ClaimsResults) == []
