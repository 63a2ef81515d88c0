"""The report in a real browser, opened from disk: no error, no request, no sideways scrolling; with screenshots."""

import shutil
from functools import partial
from pathlib import Path

import pytest

from glocal.report import write_report
from tests.report.making import of_task, results
from tests.report.making_insides import looked_into
from tests.report.test_page import HOSTILE

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SCREENSHOTS = Path(__file__).parents[2] / "screenshots"
VIEWS = {
    "desktop-light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "desktop-dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone-light": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light"},
    "phone-dark": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"},
}
PAGES = {
    "three-models": results,
    "hostile-names": partial(results, classes=HOSTILE),
    "fractions-one-seed": partial(results, fractions=(1.0, 0.3, 0.1), seeds=1, failed=("vit_micro",)),
    "many": partial(
        results,
        models=tuple(f"a_rather_long_model_name_{i}" for i in range(10)),
        classes=tuple(f"class {i}" for i in range(100)),
        seeds=1,
    ),
    "insides": looked_into,
    "insides-many": partial(looked_into, models=tuple(f"a_rather_long_model_name_{i}" for i in range(10)), seeds=1),
    "detection": partial(of_task, "map"),
    "segmentation": partial(of_task, "miou", fractions=(1.0, 0.3), failed=("vit_micro",)),
}


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        pytest.skip(
            "NO BROWSER: the report was NOT opened in one. Install Chromium (Debian: apt-get install chromium) to run "
            "this test."
        )
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser
        browser.close()


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(
    "view",
    [
        "desktop-light",
        "phone-dark",
        *(pytest.param(v, marks=pytest.mark.slow) for v in ("desktop-dark", "phone-light")),
    ],
)
def test_opens_without_error_or_request(browser, name, view, tmp_path):
    made, pictures = PAGES[name]()
    path = write_report(made, tmp_path, pictures=pictures)
    context = browser.new_context(**VIEWS[view])
    page = context.new_page()
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (troubles.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on(
        "request",
        lambda request: troubles.append(f"request: {request.url[:100]}") if _outside(request.url, path) else 0,
    )
    page.goto(path.as_uri())
    assert page.inner_text(".verdict").replace("\u2011", "-").split() == made["verdict"]["sentence"].split()
    width, scroll = page.evaluate("[document.documentElement.clientWidth, document.documentElement.scrollWidth]")
    assert scroll <= width, "the page scrolls sideways"
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}-{view}.png", full_page=True)
    if view == "desktop-light":
        _print(page, name)
    context.close()
    assert not troubles


def _print(page, name):
    """On A4 everything is shown, folded parts too, in light colours and without anything cut off at the side."""
    page.emulate_media(media="print", color_scheme="dark")
    page.set_viewport_size({"width": 688, "height": 1000})  # 182 mm at 96 dpi
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    hidden = "[...document.querySelectorAll('details > :not(summary)')].filter(part => !part.checkVisibility()).length"
    assert page.evaluate(hidden) == 0
    wide = "[...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth + 1).length"
    if not name.endswith("many"):  # ten models by their long names are wider than paper
        assert page.evaluate(wide) == 0
    page.screenshot(path=SCREENSHOTS / f"{name}-print.png", full_page=True)
    page.pdf(path=SCREENSHOTS / f"{name}.pdf", format="A4")


def _outside(url: str, page: Path) -> bool:
    return not url.startswith(("data:image/png", "data:image/jpeg")) and url != page.as_uri()


def test_the_harness_sees_a_request_and_an_error(browser, tmp_path):
    """The test above can fail: a planted image from elsewhere and a planted script are both noticed."""
    planted = tmp_path / "planted.html"
    planted.write_text("<img src='file:///nowhere.png'><script>throw Error('x')</script>")
    page = browser.new_page()
    troubles: list[str] = []
    page.on("request", lambda request: troubles.append("request") if _outside(request.url, planted) else 0)
    page.on("pageerror", lambda error: troubles.append("error"))
    page.goto(planted.as_uri())
    page.close()
    assert {"request", "error"} <= set(troubles)
