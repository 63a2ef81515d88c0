"""What the report says of models that were looked into."""

import re

import numpy as np
import pytest

from glocal.report import render_report
from glocal.report.insides_figures import heat
from tests.report.making import results
from tests.report.making_insides import looked_into
from tests.report.test_page import HOSTILE, Text, text_of


def section(page):
    return re.search(r'<section class="insides">.*?</section>', page, re.DOTALL)[0]


SMALL = {"classes": ("ant", "bee"), "seeds": 1}


@pytest.fixture(scope="module")
def page():
    made, pictures = looked_into()
    return render_report(made, pictures=pictures)


def test_the_panel_has_what_the_results_have(page):
    made, _ = looked_into()
    text = text_of(section(page))
    for model in made["analysis"]["models"]:
        parts = model["parts"]
        for group in parts["locality"]:
            assert re.search(rf"\b{100 * group['changed']:.0f}\b", text)
        for point in parts["receptive_field"]:
            assert f"{100 * point['area']:.0f} %" in text
        scores = [curve["score"][-2] for curve in parts["robustness"]["curves"]]
        shown = " ".join(f"{100 * score:.1f}" for score in (parts["robustness"]["clean"], *scores))
        assert f"{shown} {model['seconds']:.1f}" in text
    assert (
        "on 256 random validation images (the same for all; attention, features and gradients on 32 of them), in 12 s"
        in text
    )
    assert "not why one of them is better" in text


def test_what_was_found_is_said_in_a_sentence_for_each_panel(page):
    text = text_of(section(page))
    for sentence in (
        "resnet_micro, the most accurate, depends on convolution alone, has a receptive field of 50 % (the others 75 "
        "to 100 %) of the image at its last layer and loses 25 (the others 40 to 55) points with 50 % of the image "
        "masked.",
        "Predictions depend on convolution alone: resnet_micro; convolution more than attention: botnet_micro (79 and "
        "49 %); attention alone: vit_micro.",
        "At the last layer it is 50 % of the image in resnet_micro, the smallest, and 100 % in vit_micro, the largest.",
        "botnet_micro: 10.0 to 13.0 px; vit_micro: 11.0 to 14.0 px; no spatial attention in resnet_micro.",
        "Here convolution sharpens in 2 of 2 models, attention blurs in 2 of 2 models and the MLP has no consistent "
        "effect.",
        "With low-frequency noise of the image's std resnet_micro loses least (30 points), vit_micro most (54).",
        "With 50 % of the image masked resnet_micro loses least (25 points), vit_micro most (55).",
        "With 4 × 4 patches shuffled resnet_micro loses least (40 points), vit_micro most (64).",
    ):
        assert sentence in text, sentence


def test_a_difference_within_the_noise_of_the_images_is_none():
    made, _ = looked_into(**SMALL)
    made["analysis"]["images"] = 20
    for model in made["analysis"]["models"]:
        model["parts"]["robustness"] = made["analysis"]["models"][0]["parts"]["robustness"]
    made["analysis"]["models"][1]["parts"]["locality"][0]["changed"] = 0.5
    text = text_of(section(render_report(made)))
    assert "convolution and attention about equally: botnet_micro (50 and 49 %)" in text
    assert "With 50 % of the image masked all lose about the same: 25 to 25 points." in text


def test_figures_and_pictures_are_there_once_and_described(page):
    tags = Text(section(page)).tags
    labels = [attributes["aria-label"] for tag, attributes in tags if tag == "svg" and "role" in attributes]
    assert len(labels) == 3 + 4 + 1
    assert labels[0].startswith(
        "Predictions that change without a kind of operation, %: resnet_micro without convolution"
    )
    images = [attributes for tag, attributes in tags if tag == "img"]
    assert len(images) == 3 * 3 + 4 * 2
    assert len({attributes["src"] for attributes in images}) == 3 * 3 + 1 + 4
    ids = [attributes["id"] for _, attributes in Text(page).tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_parts_that_are_missing_are_listed_and_take_nothing_else_away():
    made, pictures = looked_into(**SMALL)
    of_resnet, of_botnet, of_vit = made["analysis"]["models"]
    of_resnet["failed"]["fourier"], of_resnet["parts"]["fourier"] = HOSTILE[0], []
    del of_botnet["parts"]["robustness"]
    of_botnet["failed"]["robustness"] = HOSTILE[4]
    of_vit["without"] = {"locality": "no residual sums"}
    del of_vit["parts"]["locality"]
    page = render_report(made, pictures=pictures)
    text = text_of(section(page))
    assert "resnet_micro fine detail <script>alert(1)</script>" in text
    assert "<script" not in page
    assert "botnet_micro robustness \\u202egnp" in text
    assert "vit_micro ablation no residual sums" in text
    assert "With 50 % of the image masked resnet_micro loses least" in text
    assert "attention alone: vit_micro" not in text
    for model in made["analysis"]["models"]:
        model["parts"] = {"receptive_field": model["parts"]["receptive_field"]}
    assert "Effective receptive field" in section(render_report(made))
    for model in made["analysis"]["models"]:
        model["parts"] = {}
    assert "<svg role" not in section(render_report(made))


def test_attention_that_looks_everywhere_and_fine_detail_that_goes_both_ways():
    made, _ = looked_into(**SMALL)
    for model in made["analysis"]["models"]:
        for point in model["parts"]["attention"]:
            point["distance"] = 16.0
        for point in model["parts"]["fourier"]:
            point["change"] *= -1 if model["model"] == "vit_micro" else 1
    text = text_of(section(render_report(made)))
    assert "botnet_micro and vit_micro: about the distance of uniform attention; no spatial attention" in text
    assert "attention has no consistent effect" in text


def test_a_receptive_field_is_coloured_where_it_is_held():
    field = np.zeros((16, 16))
    field[4:8, 4:12] = 1.0  # 32 of 256 places, which hold all
    field[0, 0] = 0.01
    shown = np.asarray(heat(field.tolist())).sum(-1) > 3  # the darkest of the colours is not quite black
    assert shown[4:8, 4:12].all()
    assert shown.sum() == 32
    assert (np.asarray(heat(np.ones((16, 16)).tolist())).sum(-1) > 3).all()


def test_the_lead_names_the_disturbance_where_the_best_stands_out():
    made, _ = looked_into(**SMALL)
    best = made["analysis"]["models"][0]["parts"]["robustness"]
    best["curves"][3]["score"][1] = best["clean"] - 0.05  # 4 x 4 patches shuffled
    text = text_of(section(render_report(made)))
    assert "loses 5 (the others 52 to 64) points with 4 × 4 patches shuffled." in text


def test_it_is_of_models_that_are_in_the_summary():
    made, _ = looked_into(failed=("resnet_micro",), **SMALL)
    text = text_of(section(render_report(made)))
    assert "botnet_micro, the most accurate" in text
    assert "resnet_micro" not in text
    one, _ = looked_into(models=("vit_micro",), **SMALL)
    assert "With 50 % of the image masked vit_micro loses 25 points." in text_of(section(render_report(one)))


def test_without_an_analysis_there_is_no_panel():
    assert "insides" not in render_report(results()[0]).split("</style>")[1]


def test_hostile_names_are_text():
    made, pictures = looked_into(classes=HOSTILE)
    made["analysis"]["example"] = HOSTILE[0]
    made["analysis"]["models"][0]["failed"] = dict.fromkeys(("attention", "fourier"), HOSTILE[2])
    tags = Text(render_report(made, pictures=pictures)).tags
    assert not {"script", "iframe"} & {tag for tag, _ in tags}
    assert all(attributes["src"].startswith("data:") for tag, attributes in tags if tag == "img")
