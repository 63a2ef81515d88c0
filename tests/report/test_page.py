"""What stands in the report, and what must never."""

import base64
import csv
import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from glocal.report import render_report, write_csv, write_report
from glocal.report.figures import Looks, pareto
from tests.report.making import of_task, results

HOSTILE = (
    "<script>alert(1)</script>",
    "=cmd()",
    "</style><img src=x onerror=alert(2)>",
    "$x^2_",
    "\u202egnp",
    "a\nb\udcff",
    'id="x" #010203',
    "猫",
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
    assert made["verdict"]["sentence"] in text.replace("\u2011", "-")
    for row in made["summary"]:
        assert f"{100 * row['top1_mean']:.1f} {100 * row['top1_ci'][0]:.1f}–{100 * row['top1_ci'][1]:.1f}" in text
    assert "17.1M" in text
    assert made["command"] in text
    assert "tie −0.6 (−1.7 to +0.6)" in text
    assert "3 models × 3 seeds, 5 epochs each, scratch, 32 px · 8,000 training and 1,600 validation images" in text
    assert "ant/bad.jpg truncated" in text
    assert "1 link was not followed" in text
    assert "lr 0.002" in text
    assert "cpu AMD EPYC" in text
    assert "flip yes" in text
    assert "gpu" not in text
    assert "t-interval over 3 seeds" in text


def test_classes_stand_from_hard_to_easy_and_confusions_by_share():
    made, _ = results()
    text = text_of(render_report(made))
    best = [run for run in made["runs"] if run["model"] == "resnet_micro"]
    others = [run for run in made["runs"] if run["model"] == "vit_micro"]
    scores, other = (
        [sum(scores) / 3 for scores in zip(*(run["per_class"] for run in runs), strict=True)] for runs in (best, others)
    )
    hardest = min(range(8), key=scores.__getitem__)
    heads = "class resnet_micro botnet_micro vit_micro"
    after = text[text.index(heads) + len(heads) :].split()
    assert after[:2] == [made["data"]["classes"][hardest], f"{100 * scores[hardest]:.1f}"]
    assert after[3] == f"{100 * other[hardest]:.1f}"
    shares = {(i, j): sum(run["confusion"][i][j] for run in best) / 600 for i in range(8) for j in range(8) if i != j}
    (i, j), share = max(shares.items(), key=lambda item: item[1])
    true, predicted = made["data"]["classes"][i], made["data"]["classes"][j]
    assert f"true taken for % of it {true} {predicted} {100 * share:.1f}" in text


def test_figures_are_described_and_unique():
    made, pictures = results()
    page = Text(render_report(made, pictures=pictures))
    figures = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert figures
    swatches = [attributes for attributes in figures if attributes.get("class") == "swatch"]
    assert all(attributes["aria-hidden"] == "true" for attributes in swatches)
    figures = [attributes for attributes in figures if attributes not in swatches]
    assert len(figures) == 2 + 2 + 2 + 3
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in figures)
    row = made["summary"][0]
    assert f"resnet_micro {100 * row['top1_mean']:.1f} (" in figures[0]["aria-label"]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 3 * 12
    assert all(attributes["src"].startswith("data:image/png;base64,") and attributes["alt"] for attributes in images)


def test_pictures_are_encoded_anew_and_found_by_any_name():
    names = ("a\nb", "\u202egnp", "\udcff", "猫")
    made, pictures = results(classes=names)
    assert render_report(made, pictures=pictures).count("data:image/png;base64,") == 3 * 12
    photo = Image.effect_noise((640, 480), 40)
    photo.info["comment"] = b"from the file"
    page = render_report(made, pictures=dict.fromkeys(pictures, photo))
    uris = re.findall(r"data:image/jpeg;base64,([^\"]*)", page)
    assert len(uris) == 3 * 12
    shown = Image.open(io.BytesIO(base64.b64decode(uris[0])))
    assert shown.size == (168, 126)
    assert "comment" not in shown.info


def test_looks_differ_for_56_models():
    looks = Looks([f"m{i}" for i in range(56)])
    assert len({(looks.colour[model], looks.marker[model]) for model in looks.colour}) == 56
    assert len({looks.swatch(model) for model in looks.colour}) == 56


def test_a_model_looks_the_same_in_every_figure():
    made, _ = results(fractions=(1.0, 0.1))
    shuffled = {**made, "summary": made["summary"][::-1], "runs": made["runs"][::-1]}
    for page in map(render_report, (made, shuffled)):
        for i, model in enumerate(made["settings"]["models"]):
            variables = set(re.findall(r'fill:var\((--series-\d)\)"/></svg>' + model, page))
            assert variables == {f"--series-{i}"}


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
    assert page.count('>id="x" #010203<') >= 3, "figures leave names as they are"
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
    assert "Failed runs" in text
    assert "2 failed" in text
    whole, pictures = results()
    assert "With fewer images" not in text_of(render_report(whole, pictures=pictures))
    nothing, _ = results(failed=("resnet_micro", "botnet_micro", "vit_micro"))
    assert "Leaderboard" not in text_of(render_report(nothing))
    assert "Failed runs" in text_of(render_report(nothing))


def test_a_hundred_classes_and_ten_models():
    made, pictures = results(
        models=tuple(f"model_{i}" for i in range(10)), classes=tuple(f"class {i}" for i in range(100))
    )
    page = render_report(made, pictures=pictures)
    assert "All 100 classes" in page
    assert len(page) < 4e6


def test_a_long_list_of_skipped_files_is_cut_with_its_rest_counted():
    made, _ = results()
    made["data"]["skipped"] = [{"path": f"{i}.jpg", "reason": "truncated"} for i in range(1503)]
    text = text_of(render_report(made))
    assert "1503 files were skipped." in text
    assert "499.jpg truncated And 1,003 more: results.json lists all." in text
    assert "500.jpg" not in text


def test_classes_without_test_images_have_no_score():
    made, _ = results()
    for run in made["runs"]:
        run["per_class"][0] = None
        run["confusion"][0] = [0] * 8
    assert "ant – – –" in text_of(render_report(made))


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


def test_without_a_confusion_matrix_there_is_no_such_part():
    made, pictures = results()
    for run in made["runs"]:
        run["confusion"] = []  # as above 2,000 classes
    page = text_of(render_report(made, pictures=pictures))
    assert "Confusion" not in page
    assert "Per class" in page or "classes" in page


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (
            "map",
            ("Box AP on the validation images", "box AP, %", "AP50 AP75 para", "from 0.31", "F1 20 %", "with fcos"),
        ),
        ("miou", ("mIoU on the validation images", "mIoU, %", "pixel accuracy para", "pixel by pixel", "mIoU 20 %")),
    ],
)
def test_a_page_of_another_task_has_its_words_and_pictures(metric, expected, tmp_path):
    made, pictures = of_task(metric)
    page = render_report(made, pictures=pictures)
    text = text_of(page)
    for words in (*expected, "images/s, batch\u00a08".replace("\u00a0", " "), "channels 64, its BatchNorm frozen"):
        assert words in text, words
    for words in ("top-1", "top\u20111", "ECE", "Most confident mistakes"):
        assert words not in text, words
    for row in made["summary"]:
        low, high = row[f"{metric}_ci"]
        assert f"{100 * row[f'{metric}_mean']:.1f} {100 * low:.1f}–{100 * high:.1f}" in text
    images = [attributes["src"] for tag, attributes in Text(page).tags if tag == "img"]
    assert len(images) == 4 * (1 + 3)
    assert len(set(images)) > 4
    assert "&lt;b&gt;a.jpg" in page
    assert "botnet_micro –" not in text
    assert "Confusion" in text if metric == "miou" else "Confusion" not in text
    write_csv(made, tmp_path / "results.csv")
    with open(tmp_path / "results.csv", newline="") as file:
        row = next(csv.DictReader(file))
    assert float(row[metric]) == made["runs"][0][metric]
    assert float(row["images_per_s_b8"]) == made["runs"][0]["images_per_s_b8"]


def test_an_example_whose_image_went_bad_is_left_out():
    made, pictures = of_task("map")
    del pictures["truth/b.jpg"]
    text = text_of(render_report(made, pictures=pictures))
    assert "c.jpg" in text
    assert "b.jpg" not in text
