"""The pages of claims: what they say, and in a real browser no error, no request, no sideways scrolling."""

import re

import pytest

from glocal.report.claims import write_claims
from tests.report.making_claims import results
from tests.report.test_browser import SCREENSHOTS, VIEWS, _outside, browser  # noqa: F401  (a fixture)
from tests.report.test_page import HOSTILE, Text, text_of

LOOKED_AT = ("index", "small-data", "coupling", "cost", "low-pass", "padding-position", "small-patches")


@pytest.fixture(scope="module")
def made():
    return results()


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory):
    out = tmp_path_factory.mktemp("claims")
    assert write_claims(made, out) == out / "index.html"
    return out


def test_every_claim_has_its_page_and_its_row(made, folder):
    overview = text_of((folder / "index.html").read_text())
    verdicts = [claim["verdict"] for claim in made["claims"]]
    counts = [verdicts.count(verdict) for verdict in ("supported", "contradicted", "inconclusive", None)]
    assert min(counts) > 0
    headline = "17 claims of the papers, tested: {} supported, {} contradicted, {} inconclusive, {} not tested."
    assert headline.format(*counts) in overview
    links = [attributes["href"] for tag, attributes in Text((folder / "index.html").read_text()).tags if tag == "a"]
    for claim in made["claims"]:
        assert f"{claim['id']}.html" in links
        assert (folder / f"{claim['id']}.html").exists()
        assert claim["sentence"] in overview
    assert {path.stem for path in folder.iterdir()} == {"index", *(claim["id"] for claim in made["claims"])}


def test_a_page_says_all_that_is_known(made, folder):
    for claim in made["claims"]:
        text = (folder / f"{claim['id']}.html").read_text()
        page, said = Text(text), text_of(text)
        assert not {"script", "iframe", "object", "link", "form", "img"} & {tag for tag, _ in page.tags}
        for words in (claim["sentence"], claim["background"], claim["differ"], claim["finding"], claim["source"]):
            assert " ".join(words.split()) in said
        assert (claim["verdict"] or "not tested") in said
        for published in claim["published"]:
            assert published["text"] in said
        assert said.count("second hand") == sum(published["second_hand"] for published in claim["published"])
        assert claim["command"] in said
        for row in claim["comparisons"]:
            assert row["finding"] in said
        for row in claim["arms"]:
            assert row["name"] in said
            for model in row["models"]:
                assert all(part in said for part in model.split(":"))
        if claim["cost"]["runs"]:
            assert "neither proved nor disproved" in said
        assert "mathdefault" not in text
        if claim["comparisons"] and claim["measure"]["unit"] == "points":
            assert re.search(r"\d\u00a0points", text)  # not parted at the end of a line
        assert text.endswith("</html>")


def test_names_from_outside_are_escaped(tmp_path):
    made = results(HOSTILE[0], f"glocal claims run all {HOSTILE[1]}")
    made["claims"] = made["claims"][1:2]
    write_claims(made, tmp_path)
    for path in tmp_path.iterdir():
        assert not {"script", "img", "iframe"} & {tag for tag, _ in Text(path.read_text()).tags}


def test_the_figure_of_effects_has_a_mark_for_each_part(made, folder):
    coupling = next(claim for claim in made["claims"] if claim["id"] == "coupling")
    text = (folder / "coupling.html").read_text()
    described = re.search(r'aria-label="(Differences with[^"]*)"', text)[1]
    for row in coupling["comparisons"]:
        assert f"{row['question']}: {row['verdict']}" in described


@pytest.mark.parametrize("name", LOOKED_AT)
@pytest.mark.parametrize("view", VIEWS)
def test_opens_without_error_or_request(browser, folder, name, view):  # noqa: F811
    path = folder / f"{name}.html"
    context = browser.new_context(**VIEWS[view])
    page = context.new_page()
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (troubles.append("dialog"), dialog.dismiss()))
    page.on("request", lambda request: troubles.append(request.url[:100]) if _outside(request.url, path) else 0)
    page.goto(path.as_uri())
    assert page.inner_text(".verdict")
    width, scroll = page.evaluate("[document.documentElement.clientWidth, document.documentElement.scrollWidth]")
    assert scroll <= width, "the page scrolls sideways"
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"claims-{name}-{view}.png", full_page=True)
    if name == "index":
        page.click("text=Convolutional projections")
        assert page.url.endswith("cvt-conv-projection.html")
        troubles = [trouble for trouble in troubles if not trouble.startswith(f"file://{folder}/")]
    context.close()
    assert not troubles
