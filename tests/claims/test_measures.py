import json

import numpy as np
import pytest
import torch

from glocal.claims import CLAIMS, choose
from glocal.claims.claim import Arm, arm
from glocal.claims.measures import COST_SIZES, METRICS, attention_formulas
from glocal.models.creation import create, model_args
from glocal.models.io import ModelConfig, save_model
from glocal.training import load_pixels
from tests.claims.making import claim
from tests.shapes import data_source


class Folders:
    """Untrained models in the place of trained ones, each under every seed, saved when they are asked for."""

    image_size, device = 32, "cpu"

    def __init__(self, root, seeds=(0, 1)):
        self.root, self.of = root, seeds
        self.data = data_source(num_val=70)
        self.val_images = load_pixels(self.data.val, 32)

    def seeds(self, claim):
        return self.of

    def folder(self, model, fraction, seed):
        folder = self.root / f"{model}-{fraction}-{seed}".replace("/", "_")
        if not folder.exists():
            made = create(model, num_classes=3, image_size=32, seed=seed + 10)
            save_model(
                made,
                folder,
                ModelConfig.of_classifier(
                    made, classes=self.data.classes, image_size=32, keywords=model_args(model, 32)
                ),
            )
        return folder

    def right(self, model, fraction, seed):
        rng = np.random.default_rng([len(model), int(10 * fraction), seed])
        return rng.random(70) < 0.5


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    return Folders(tmp_path_factory.mktemp("models"))


def read(tested, trials):
    found = METRICS[tested.measure].read(tested, trials)
    assert set(found.values) == {arm.name for arm in tested.arms}
    assert len({values.shape for values in found.values.values()}) == 1
    json.dumps(found.details, allow_nan=False)
    return found


def test_answers_of_several_models_are_their_mean(trials):
    both = Arm("sees", ("resnet_micro", "botnet_micro"), 0.3)
    found = read(claim(arms=(both, arm("blind", "vit_micro"))), trials)
    expected = [[trials.right(model, 0.3, seed) for model in both.models] for seed in (0, 1)]  # (seeds, models, images)
    np.testing.assert_allclose(found.values["sees"], np.mean(expected, axis=1))
    np.testing.assert_array_equal(found.values["blind"][1], trials.right("vit_micro", 1.0, 1))
    means = [(row["model"], row["mean"]) for row in found.details["models"]]
    assert means == [(m, pytest.approx(np.mean(expected, axis=(0, 2))[i])) for i, m in enumerate(both.models)]


def test_heads_are_those_of_the_model_and_both_is_its_answer(trials):
    (two_heads,) = choose("two-heads")
    found = read(two_heads, trials)
    from glocal.data.transforms import Normalize
    from glocal.models.io import load_model
    from glocal.training import predict

    saved = load_model(trials.folder("conformer_micro", 1.0, 1))
    logits = predict(saved.model, Normalize(saved.mean, saved.std), trials.val_images)
    right = logits.argmax(1).numpy() == trials.data.val.labels
    np.testing.assert_array_equal(found.values["sum of both heads"][1], right)
    assert found.paired
    torch.nn.init.zeros_(saved.model.conv_head.weight)  # an answer that is always the same
    assert 0 < found.values["convolution head"].mean() < 1


def test_formulas_are_the_published_figures_and_what_is_counted(trials):
    formulas = attention_formulas(56)
    assert [round(formulas[key] / 1e9, 4) for key in ("msa", "ipsa", "cpsa")] == [2.0038, 0.1451, 0.0975]
    found = read(choose("cost")[0], trials)
    for kind in ("global", "inside windows", "between windows"):
        np.testing.assert_allclose(found.values[kind], found.values[f"{kind}, formula"], rtol=1e-9)
    assert found.values["global"].shape == (1, len(COST_SIZES))
    assert (np.diff(found.values["inside windows"]) < 0).all()  # the larger the map, the smaller the share


def test_frequencies_of_models_with_one_kind_of_operation(trials):
    arms = (
        Arm("sees", ("resnet_micro",), reading="trained convolution"),
        Arm("blind", ("vit_micro",), reading="trained attention"),
        Arm("fresh", ("vit_micro",), reading="untrained attention"),
    )
    found = read(claim(arms=arms, measure="frequencies"), trials)
    assert found.values["sees"].shape == (2, 8)
    assert not np.allclose(found.values["blind"], found.values["fresh"])  # other seeds: other weights
    kinds = {(block["model"], block["kind"]) for block in found.details["blocks"]}
    assert kinds == {("resnet_micro", "convolution"), ("vit_micro", "attention")}
    of_vit = [block["trained"] for block in found.details["blocks"] if block["model"] == "vit_micro"]
    assert len(of_vit) == 5
    assert found.values["blind"].mean() == pytest.approx(np.mean(of_vit))


def test_borders_tell_an_untrained_network_its_place(trials):
    arms = (
        arm("sees", "resnet_micro", widths=(4, 8, 12, 16), reading="untrained zeros"),
        arm("blind", "resnet_micro", widths=(4, 8, 12, 16), reading="untrained circular"),
    )
    found = read(claim(arms=arms, measure="places"), trials)
    assert found.paired
    assert (found.values["sees"].mean(axis=1) > 0.015).all()
    assert (abs(found.values["blind"].mean(axis=1)) < 0.005).all()


def test_every_measure_has_a_claim():
    assert {claim.measure for claim in CLAIMS} == set(METRICS)
