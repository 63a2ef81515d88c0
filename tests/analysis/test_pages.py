"""The pages of all kinds in a real browser, opened from disk: no error, no request, no sideways scrolling."""

import re

import numpy as np
import pytest
import torch

from glocal import analysis
from glocal.report.analysis import Subject, write_analysis
from tests.analysis.making import images, model
from tests.report.test_browser import SCREENSHOTS, VIEWS, _outside, browser  # noqa: F401  (a fixture)
from tests.report.test_page import HOSTILE, Text, text_of

KINDS = (
    "fourier", "attention", "receptive-field", "locality", "features", "cam", "similarity", "position", "robustness",
)  # fmt: skip


def page_of(kind, out, **changes):
    module, x = model("conformer"), images(8)
    function = getattr(analysis, kind.replace("-", "_"))
    result = function(module, x[:2]) if kind == "features" else function(module, x)
    versus = {"other": function(model("resnet"), x), "versus": HOSTILE[0]} if kind == "receptive-field" else {}
    pixels = np.clip(120 + 40 * x.permute(0, 2, 3, 1).numpy(), 0, 255).astype(np.uint8)
    subject = {
        "kind": kind, "model": HOSTILE[2], "weights": "random weights, seed 0", "data": "8 images of noise, 32 px",
        "command": f"glocal analyze {kind} {HOSTILE[0]}", "glocal": "0.1.0", "created": "2026-11-21T08:00:00+00:00",
        "pictures": pixels, "classes": (*HOSTILE, "one", "two"), "versus": versus.pop("versus", None), **changes,
    }  # fmt: skip
    return write_analysis(out, Subject(**subject), result, versus.get("other"))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    torch.manual_seed(0)
    made = {}
    for kind in KINDS:
        made[kind] = page_of(kind, tmp_path_factory.mktemp(kind))
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_says_what_to_see_and_escapes_what_it_is_given(pages, kind):
    text = pages[kind].read_text()
    page = Text(text)
    assert not {"script", "iframe", "object", "link", "form"} & {tag for tag, _ in page.tags}
    figures = sum(tag == "figure" for tag, _ in page.tags)
    assert figures >= 1
    assert sum(tag == "svg" for tag, _ in page.tags) == figures
    assert len(re.findall(r'<p class="soft">[^<]{20,}</p>\s*<figure>', text)) == figures  # a line of what to see each
    said = text_of(text)
    assert re.search(r"[.!?] .*\?", said.split("Measured:")[0])  # a finding, and the question
    assert "random weights, seed 0 · 8 images of noise, 32 px" in said
    assert "mathdefault" not in text
    assert text.endswith("</html>")
    files = {file.stem for file in (pages[kind].parent / "figures").iterdir()}
    assert len(files) == figures
    for file in (pages[kind].parent / "figures").iterdir():
        assert "var(--" not in file.read_text()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("view", VIEWS)
def test_opens_without_error_or_request(browser, pages, kind, view):  # noqa: F811
    path = pages[kind]
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
    page.screenshot(path=SCREENSHOTS / f"analyze-{kind}-{view}.png", full_page=True)
    context.close()
    assert not troubles
