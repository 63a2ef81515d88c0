"""What stands in the report, and what must never."""

import csv
import re
from html.parser import HTMLParser

import pytest

from glocal.report import render_report, write_csv, write_report
from glocal.report.figures import pareto
from tests.report.making import results

HOSTILE = (
    "<script>alert(1)</script>",
    "=cmd()",
    "</style><img src=x onerror=alert(2)>",
    "$x^2_",
    "\u202egnp",
    "a\nb\udcff",
)


class Text(HTMLParser):
    """The text of a page, its tags and their attributes."""

    def __init__(self, page: str):
        super().__init__()
        self.text, self.tags = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


def text_of(page: str) -> str:
    return " ".join(" ".join(Text(page).text).split())


def test_the_verdict_and_the_numbers_are_there():
    made, pictures = results()
    text = text_of(render_report(made, pictures=pictures))
    assert made["verdict"]["sentence"] in text
    for row in made["summary"]:
        assert f"{100 * row['top1_mean']:.1f} {100 * row['top1_ci'][0]:.1f}–{100 * row['top1_ci'][1]:.1f}" in text
    assert "17.1M" in text
    assert "glocal compare photos --budget 5ep" in text
    assert "ant/bad.jpg truncated" in text
    assert "1 link was not followed" in text
    assert "lr 0.002" in text
    assert "cpu AMD EPYC" in text
    assert "t interval over seeds" in text
    worst = min(
        range(4), key=lambda c: sum(run["per_class"][c] for run in made["runs"] if run["model"] == "resnet_micro")
    )
    assert text.index("Class by class") < text.index(made["data"]["classes"][worst], text.index("Class by class"))


def test_figures_are_described_and_unique():
    made, pictures = results()
    page = Text(render_report(made, pictures=pictures))
    figures = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(figures) == 5 + 3
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in figures)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 3 * 8
    assert all(attributes["src"].startswith("data:image/png;base64,") and attributes["alt"] for attributes in images)


def test_the_same_results_make_the_same_page():
    made, pictures = results()
    assert render_report(made, pictures=pictures) == render_report(made, pictures=pictures)


def test_names_from_data_are_text_and_nothing_else():
    made, _ = results(classes=HOSTILE)
    made["data"]["skipped"] = [{"path": name, "reason": name} for name in HOSTILE]
    made["runs"][0]["status"], made["runs"][0]["error"] = "failed", HOSTILE[0]
    page = render_report(made)
    assert not {"script", "iframe", "object", "embed", "link", "form", "base"} & {tag for tag, _ in Text(page).tags}
    for tag, attributes in Text(page).tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert not (tag == "img" and not attributes["src"].startswith("data:"))
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "\u202e" not in page
    assert "\\u202egnp" in page
    assert "$x^2_" in page, "no class name is read as mathematics"
    page.encode()


def test_nothing_is_loaded_from_anywhere():
    made, pictures = results()
    page = render_report(made, pictures=pictures)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page).group(1)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    for _, attributes in Text(page).tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "action", "srcset", "poster"):
                assert value.startswith(("data:", "#")), (name, value[:80])
    assert "@import" not in page
    assert not re.findall(r"url\((?!#)", page)


def test_failed_runs_one_seed_and_fractions():
    made, pictures = results(failed=("vit_micro",), seeds=1, fractions=(1.0, 0.1))
    text = text_of(render_report(made, pictures=pictures))
    assert "vit_micro-f1-s0 the loss became NaN at step 12: try a smaller lr" in text
    assert "Seeds were not varied." in text
    assert "With fewer images" in text
    assert "10 %" in text
    whole, pictures = results()
    assert "With fewer images" not in text_of(render_report(whole, pictures=pictures))
    nothing, _ = results(failed=("resnet_micro", "botnet_micro", "vit_micro"))
    assert "Leaderboard" not in text_of(render_report(nothing))
    assert "Runs that failed" in text_of(render_report(nothing))


def test_a_hundred_classes_and_ten_models():
    made, pictures = results(
        models=tuple(f"model_{i}" for i in range(10)), classes=tuple(f"class {i}" for i in range(100))
    )
    page = render_report(made, pictures=pictures)
    assert "All 100 classes" in page
    assert len(page) < 8e6


def test_written_whole_with_what_no_encoding_has(tmp_path):
    made, pictures = results(classes=HOSTILE)
    path = write_report(made, tmp_path, pictures=pictures)
    assert path == tmp_path / "report.html"
    assert path.read_text(encoding="utf-8").endswith("</html>")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_csv_has_a_row_a_run_and_no_formulas(tmp_path):
    made, _ = results(failed=("vit_micro",))
    made["runs"][-1]["error"] = "=HYPERLINK(1)"
    made["runs"][0]["nll"] = -0.5
    write_csv(made, tmp_path / "results.csv")
    with open(tmp_path / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [run["id"] for run in made["runs"]]
    assert float(rows[0]["top1"]) == made["runs"][0]["top1"]
    assert rows[0]["nll"] == "-0.5"
    assert rows[0]["budget"] == "5ep"
    assert rows[-1]["error"] == "'=HYPERLINK(1)"


@pytest.mark.parametrize(
    ("costs", "scores", "front"),
    [
        ([3, 2, 1], [0.9, 0.8, 0.7], [2, 1, 0]),
        ([1, 2, 3], [0.9, 0.8, 0.95], [0, 2]),
        ([1, 1, 2], [0.5, 0.6, 0.6], [1]),
        ([], [], []),
    ],
)
def test_the_pareto_front(costs, scores, front):
    assert pareto(costs, scores) == front
