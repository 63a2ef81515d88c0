"""Every family against outputs of its authors' code, for weights and images that any machine can rebuild.

fixtures/ holds what the authors' code gave in float64 (its repository and commit are in each manifest); recipe.py makes
the weights under the names of the release, and the images.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import glocal
from tests.parity import recipe
from tests.randomized import undrawn

FLOAT64, FLOAT32 = 1e-6, 2e-5  # of the largest value; the authors' code itself: 5e-8 (rounding of the file), 2e-6
FIXTURES: dict[str, tuple[str, dict[str, Any]]] = {  # fixture: our name, keywords
    **{
        name: (name, {})
        for name in (
            "t2t_vit_7", "t2t_vit_14", "t2t_vit_14_resnext", "t2t_vit_14_se", "t2t_vit_14_wide", "t2t_vit_16_ghost",
            "t2t_vit_dense", "t2t_vit_t_14",
        )
    },
    "cat_tiny": ("cat_tiny", {}),
    "cat_small": ("cat_small", {}),
    "cat_base": ("cat_base", {}),
    "cvt-13-224": ("cvt_13", {}),
    "cvt-21-384": ("cvt_21", {}),
    "cvt-w24-384": ("cvt_w24", {}),
    "cvt_13.huggingface": ("cvt_13", {}),
    "cvt_21.huggingface": ("cvt_21", {}),
    "t2t_vit_7_large_kqv": ("t2t_vit_7", {}),
    "t2t_vit_t_14.mmpretrain": ("t2t_vit_t_14", {}),
}  # fmt: skip


def load(fixture: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    return recipe.load(fixture, recipe.pathlib.Path(__file__).parent / "fixtures")


def weights(manifest: dict[str, Any]) -> dict[str, torch.Tensor]:
    arrays = recipe.state_dict(manifest)
    assert recipe.digest(arrays) == manifest["weights_sha256"], "the recipe does not make the fixture's weights"
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def build(fixture: str, manifest: dict[str, Any], **kwargs: Any) -> nn.Module:
    """The model with the fixture's weights, strictly: no entry left over, none missing."""
    name, ours = {**FIXTURES, **TWO_HEADS, **DENSE}[fixture]
    converted = glocal.convert_checkpoint(name, weights(manifest), **kwargs)
    model = undrawn(glocal.create_model, name, **ours, **kwargs)
    (model.model if "features_only" in ours else model).load_state_dict(converted)
    return model.eval()


def check(got: np.ndarray, output: dict[str, Any], arrays: dict[str, np.ndarray], bound: float) -> None:
    assert list(got.shape) == output["shape"]
    assert np.isfinite(got).all()
    expected = arrays[output["name"]]
    if output["stored"] != "all":
        mean, std = arrays[output["name"] + ".stats"]
        assert abs(got.mean() - mean) <= bound * output["max_abs"]
        assert abs(got.std() - std) <= bound * output["max_abs"]
        got = got.ravel()[output["indices"]]
    assert np.abs(got - expected).max() <= bound * output["max_abs"]


def compare(fixture: str, forward: Callable[[nn.Module, torch.Tensor], tuple[torch.Tensor, ...]]) -> None:
    manifest, arrays = load(fixture)
    outputs = {output["name"]: output for output in manifest["outputs"]}
    for call in manifest["calls"]:
        model = build(fixture, manifest, **call["constructor_override"])
        frozen = {"conv1.weight": 9408, "bn1.weight": 64, "bn1.bias": 64}  # by the dense Conformer's train()
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        trained -= sum(frozen.get(name, 0) for name in manifest["frozen_parameters"])
        assert trained == manifest["trainable_parameters"]
        x = torch.from_numpy(recipe.image(manifest["inputs"][call["input"]]))
        for dtype, bound in ((torch.float32, FLOAT32), (torch.float64, FLOAT64)):
            with torch.no_grad():
                got = forward(model.to(dtype), x.to(dtype))
            for name, value in zip(call["outputs"], got, strict=True):
                check(value.numpy(), outputs[name], arrays, bound)


@pytest.mark.parametrize(
    "fixture",  # CvT-W24 has 277 million parameters
    [name if name != "cvt-w24-384" else pytest.param(name, marks=pytest.mark.slow) for name in FIXTURES],
)
def test_logits(fixture):
    compare(fixture, lambda model, x: (model(x),))


TWO_HEADS = {
    "Conformer_tiny_patch16": ("conformer_tiny_patch16", {}),
    "Conformer_small_patch16": ("conformer_small_patch16", {}),
    "Conformer_small_patch32": ("conformer_small_patch32", {}),
    "Conformer_base_patch16": ("conformer_base_patch16", {}),
    "conformer_tiny_patch16.mmpretrain": ("conformer_tiny_patch16", {}),
    "conformer_small_patch32.mmpretrain": ("conformer_small_patch32", {}),
}


@pytest.mark.parametrize("fixture", TWO_HEADS)
def test_logits_of_both_heads(fixture):
    compare(fixture, lambda model, x: model.forward_branches(x))


DENSE = {
    "cat_small_dense": ("cat_small", {"output_norm": True, "features_only": True, "out_indices": (0, 1, 2, 3)}),
    "cat_small_dense_odd": ("cat_small", {"output_norm": True, "features_only": True, "out_indices": (0, 1, 2, 3)}),
    "Conformer_small_patch32_dense": ("conformer_small_patch32", {"features_only": True, "out_indices": (0, 1, 2, 3)}),
}


@pytest.mark.parametrize("fixture", DENSE)
def test_maps_of_the_stages(fixture):
    compare(fixture, lambda model, x: tuple(model(x)))
