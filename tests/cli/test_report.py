"""`glocal report` and `glocal claims report` on the committed results, and on folders that cannot be used."""

import json
from pathlib import Path

import pytest

from tests.report.making import results
from tests.report.test_page import text_of

RESULTS = Path(__file__).parents[2] / "docs/results"
ANALYZED = {"schema": "glocal.analyze/1", "command": "glocal analyze fourier run"}


@pytest.mark.parametrize(("name", "folder"), [(("claims", "report"), "claims-quick"), (("report",), "claims-default")])
def test_committed_claims_have_their_pages(command, tmp_path, name, folder):
    code, out, err = command(*name, RESULTS / folder, "--out", tmp_path / "pages")
    assert (code, out, err) == (0, f"Report: {tmp_path}/pages/index.html\n", "")
    claims = json.loads((RESULTS / folder / "claims.json").read_text())["claims"]
    assert {path.name for path in (tmp_path / "pages").iterdir()} == {
        "index.html", *(f"{claim['id']}.html" for claim in claims)
    }  # fmt: skip
    for claim in claims:
        said = text_of((tmp_path / f"pages/{claim['id']}.html").read_text()).replace("\u00a0", " ")
        assert claim["verdict"] in said
        assert all(row["finding"] in said for row in claim["comparisons"])


def test_a_committed_comparison_has_its_page_without_pictures(command, tmp_path):
    code, _, err = command("report", RESULTS / "fashion-mnist", "--out", tmp_path)
    assert code == 0
    assert "the JSON holds no images" in err
    said = text_of((tmp_path / "report.html").read_text()).replace("\u2011", "-").replace("\u00a0", " ")
    assert "Without pictures of images" in said
    kept = json.loads((RESULTS / "fashion-mnist/results.json").read_text())
    assert kept["verdict"]["sentence"].partition(". ")[0] in said


def test_a_page_that_needs_no_pictures_replaces_the_old_one_and_does_not_speak_of_them(command, tmp_path):
    made, _ = results()
    for run in made["runs"]:
        run["mistakes"] = []
    (tmp_path / "results.json").write_text(json.dumps(made))
    (tmp_path / "report.html").write_text("old")
    code, _, err = command("report", tmp_path)
    assert (code, err) == (0, "")
    page = (tmp_path / "report.html").read_text()
    assert page.endswith("</html>")
    assert "Without pictures" not in page


def test_a_page_with_pictures_is_not_replaced_by_one_without(command, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(results()[0]))
    (tmp_path / "report.html").write_text("old")
    code, _, err = command("report", tmp_path)
    assert code == 2
    assert "choose another --out" in err
    assert (tmp_path / "report.html").read_text() == "old"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (None, "", "expected a folder with claims.json or results.json, got a folder without either"),
        ("results.json", "{", "got a damaged or another file"),
        ("results.json", "[]", "got a damaged or another file"),
        ("results.json", "\udcff", "got a damaged or another file"),
        ("results.json", '{"rows": []}', "got a damaged or another file"),
        ("results.json", json.dumps(ANALYZED), "the command itself writes its page: glocal analyze fourier run"),
        ("results.json", '{"schema": ["glocal.compare/1"]}', "got schema ["),
        ("results.json", '{"schema": "glocal.compare/1", "runs": []}', "damaged: expected results of glocal compare"),
        ("claims.json", '{"schema": "glocal.claims/1", "claims": [{}]}', "damaged: expected results of glocal claims"),
    ],
)
def test_what_cannot_be_used_exits_with_2(command, tmp_path, name, text, message):
    folder = tmp_path / "folder"
    folder.mkdir()
    if name is not None:
        (folder / name).write_bytes(text.encode(errors="surrogateescape"))
    code, out, err = command("report", folder)
    assert (code, out) == (2, "")
    assert message in err
    assert [path.name for path in folder.iterdir()] == [name] * (name is not None)


def test_other_wrong_calls_exit_with_2(command, tmp_path):
    (tmp_path / "file").touch()
    for folder, found in (("nowhere", "nothing"), ("file", "a file")):
        code, _, err = command("report", tmp_path / folder)
        assert code == 2
        assert f"got {found}" in err
    code, _, err = command("claims", "report", RESULTS / "fashion-mnist")
    assert code == 2
    assert "expected results of glocal claims run, got schema 'glocal.compare/1'; `glocal report` writes" in err
    code, _, err = command("report", RESULTS / "claims-default", "--out", tmp_path / "file" / "pages")
    assert code == 2
    assert "cannot write" in err


@pytest.mark.parametrize("claim", ["../escaped", "/tmp/escaped", "", "a\nb"])
def test_the_id_of_a_claim_is_no_path(command, tmp_path, claim):
    made = json.loads((RESULTS / "claims-default/claims.json").read_text())
    made["claims"][1]["id"] = claim
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/claims.json").write_text(json.dumps(made))
    code, _, err = command("claims", "report", tmp_path / "folder")
    assert code == 2
    assert "expected the id of a claim" in err
    assert [path.name for path in tmp_path.rglob("*.html")] == []
