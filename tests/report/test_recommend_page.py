"""The page of `glocal recommend`: what it says, and in a real browser no error, no request, no sideways scrolling."""

import re

import pytest

from glocal.recommend import RULE, pictures
from glocal.recommend.disturb import CONDITIONS
from glocal.recommend.need import BLURRED, SHUFFLED
from glocal.report.recommend import render_recommendation, write_recommendation
from tests.recommend.making import CHANCE, rates, results
from tests.report.test_browser import SCREENSHOTS, VIEWS, _outside, browser  # noqa: F401  (a fixture)
from tests.report.test_page import HOSTILE, Text, text_of
from tests.shapes import data_source

FOUND = {
    "local": rates(blurred=0.3),
    "global": rates(shuffled=0.3),
    "both": rates(shuffled=0.3, blurred=0.3),
    "either": rates(),
    "uncertain": rates(clean=CHANCE, shuffled=CHANCE, blurred=CHANCE),
}


@pytest.mark.parametrize("kind", RULE)
def test_the_page_says_all_that_was_found(kind):
    made = results(FOUND[kind])
    assert made["finding"]["kind"] == kind
    text = render_recommendation(made)
    said = text_of(text)
    headline = made["finding"]["sentence"].partition("; ")[0]
    assert headline in said
    assert not {"script", "iframe", "object", "link", "form", "img"} & {tag for tag, _ in Text(text).tags}
    for one in made["recommended"]:
        assert all(one[key] in said for key in ("model", "kind", "reason", "source"))
    for words in (*made["caveats"], *made["data"]["warnings"], made["next"], made["command"], made["data"]["split"]):
        assert words in said
    for row in made["need"]["conditions"]:
        assert f"{100 * row['accuracy']['mean']:.1f}" in said
    assert text.endswith("</html>")


def test_the_forms_that_needs_are_told_by_are_named_and_shown():
    assert f"patches of {SHUFFLED.size} are shuffled" in (text := render_recommendation(results(FOUND["both"])))
    assert max(one.level for one in CONDITIONS if one.kind == "blur") == BLURRED.level  # "the widest"
    assert not {"img"} & {tag for tag, _ in Text(text).tags}
    seen = pictures(data_source(), 32)
    assert list(seen) == [one.name for one in CONDITIONS]
    assert len({image.tobytes() for image in seen.values()}) == len(CONDITIONS)
    text = render_recommendation(results(FOUND["both"]), pictures=seen)
    images = [dict(attributes) for tag, attributes in Text(text).tags if tag == "img"]
    assert [image["title"] for image in images] == [
        one.name for kind in ("shuffle", "blur") for one in CONDITIONS if one.kind in ("clean", kind)
    ]
    assert all(image["src"].startswith("data:image/png;base64,") for image in images)


def test_the_figures_have_the_numbers_in_words():
    made = results(FOUND["global"])
    described = re.findall(r'aria-label="(With[^"]*)"', render_recommendation(made))
    assert [text.partition(":")[0] for text in described] == ["Without layout", "Without detail"]
    by_name = {row["name"]: row["accuracy"]["mean"] for row in made["need"]["conditions"]}
    for text, kind in zip(described, ("shuffled", "blurred"), strict=True):
        for name, mean in by_name.items():
            assert (f"{name} {100 * mean:.1f} %" in text) == (kind in name or name == "as they are")


def test_names_from_outside_are_escaped():
    for name in HOSTILE:
        text = render_recommendation(results(FOUND["local"], name, f"glocal recommend {name}"))
        assert not {"script", "img", "iframe"} & {tag for tag, _ in Text(text).tags}


@pytest.mark.parametrize("kind", ["global", "uncertain"])
@pytest.mark.parametrize("view", VIEWS)
def test_opens_without_error_or_request(browser, kind, view, tmp_path):  # noqa: F811
    made = results(FOUND[kind], HOSTILE[0] if kind == "uncertain" else "photos")
    path = write_recommendation(made, tmp_path, pictures=pictures(data_source(), 32))
    context = browser.new_context(**VIEWS[view])
    page = context.new_page()
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
    page.on("request", lambda request: troubles.append(request.url[:100]) if _outside(request.url, path) else 0)
    page.goto(path.as_uri())
    width, scroll = page.evaluate("[document.documentElement.clientWidth, document.documentElement.scrollWidth]")
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"recommend-{kind}-{view}.png", full_page=True)
    context.close()
    assert scroll <= width, "the page scrolls sideways"
    assert not troubles
