import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

import glocal  # noqa: F401 - registers its models
from glocal.comparison.features import FeatureStore, HeadInputs, digest
from glocal.data.transforms import Normalize
from glocal.errors import GlocalError
from glocal.training import load_pixels
from tests.shapes import data_source

HALF = (0.5, 0.5, 0.5)


def create(name, **keywords):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=3, **keywords).eval()


@pytest.mark.parametrize(
    ("name", "size", "num_heads", "share"),
    [
        ("resnet_micro", 32, 1, 1),
        ("vit_micro", 32, 1, 1),
        ("conformer_micro", 32, 2, 0.5),
        ("deit_tiny_distilled_patch16_224", 224, 2, 0.5),
        ("resnetv2_50", 64, 1, 1),  # its head is a 1 x 1 convolution
        ("mobilenetv3_small_050", 64, 1, 1),  # it has a layer between pooled features and head
        ("caformer_s18", 32, 1, 1),  # its head is an MLP
        ("crossvit_9_240", 240, 2, 0.5),
    ],
)
def test_the_logits_are_linear_in_the_inputs_of_the_heads(name, size, num_heads, share):
    model = create(name)
    backbone = HeadInputs(model)
    assert len(backbone.heads) == num_heads
    images = torch.randn(3, 3, size, size)
    with torch.no_grad():
        features = backbone(images)
        weight, bias = torch.randn(3, features.shape[1]).double(), torch.randn(3).double()
        backbone.set_heads(weight, bias, share)
        logits = torch.stack([sum(w * f for w, f in zip(weight[k], image, strict=True)) + bias[k]
                              for image in features.double() for k in range(3)]).view(3, 3)  # fmt: skip
        torch.testing.assert_close(model(images).double(), logits, rtol=1e-4, atol=1e-4)
    assert not any(head._forward_pre_hooks for head in backbone.heads)


def test_a_head_that_is_not_linear_is_refused():
    model = create("resnet_micro")
    for head, got in (
        (nn.Sequential(nn.Linear(8, 3)), "Sequential"),
        (nn.Linear(8, 3, bias=False), "one without a bias"),
    ):
        model.fc = head
        with pytest.raises(GlocalError, match=f"linear classifier and its bias, got {got}; use --mode finetune"):
            HeadInputs(model)


@pytest.fixture(scope="module")
def images():
    data = data_source()
    return load_pixels(data.train, 32), load_pixels(data.val, 32)


class Counted(HeadInputs):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


def compute(folder, images, model=None, fingerprint="data", mean=HALF):
    backbone = Counted(model or create("resnet_micro"))
    told = []
    features = FeatureStore(folder, fingerprint).features(
        "model", backbone, Normalize(mean, HALF), images, "cpu", lambda done, total: told.append((done, total))
    )
    return features, backbone.calls, told


def test_features_are_those_of_each_image_and_computed_once(images, tmp_path):
    features, calls, told = compute(tmp_path, images)
    total = len(images[0]) + len(images[1])
    assert calls > 0
    assert told[-1] == (total, total)
    model = HeadInputs(create("resnet_micro"))
    for part, kept in zip(images, (features.train, features.val), strict=True):
        for index in (0, len(part) - 1):
            pixels = torch.from_numpy(part.pixels[index]).permute(2, 0, 1)[None]
            with torch.no_grad():
                torch.testing.assert_close(kept[index : index + 1], model((pixels / 255 - 0.5) / 0.5))
    again, calls, _ = compute(tmp_path, images)
    assert calls == 0
    assert torch.equal(features.train, again.train)
    assert torch.equal(features.val, again.val)
    assert features.seconds == again.seconds > 0


@pytest.mark.parametrize("change", ["weights", "data", "mean", "statistics"])
def test_other_weights_data_or_preprocessing_have_features_of_their_own(images, tmp_path, change):
    before, _, _ = compute(tmp_path, images)
    model = create("resnet_micro")
    if change == "weights":
        with torch.no_grad():
            next(model.parameters()).flatten()[0] += 0.5
    if change == "statistics":
        next(buffer for name, buffer in model.named_buffers() if "running_var" in name).mul_(2)
    after, calls, _ = compute(
        tmp_path, images, model,
        fingerprint="other" if change == "data" else "data",
        mean=(0.4, 0.5, 0.5) if change == "mean" else HALF,
    )  # fmt: skip
    assert calls > 0
    assert torch.equal(before.val, after.val) == (change == "data")
    assert len(list(tmp_path.iterdir())) == 2


def flipped(data):
    """One bit of a feature."""
    return data[:-100] + bytes([data[-100] ^ 64]) + data[-99:]


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-9], lambda data: b"x" + data[1:], flipped])
def test_a_damaged_file_is_computed_again(images, tmp_path, damage):
    before, _, _ = compute(tmp_path, images)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    after, calls, _ = compute(tmp_path, images)
    assert calls > 0
    assert torch.equal(before.train, after.train)
    assert set(load_file(file)) == {"train", "val"}


def test_features_that_cannot_be_kept_are_still_given(images, tmp_path):
    (tmp_path / "features").write_text("in the way")
    with pytest.warns(UserWarning, match="features of model are not kept"):
        features, _, _ = compute(tmp_path / "features", images)
    assert len(features.train) == len(images[0])


def test_the_head_is_not_part_of_the_digest():
    model = create("conformer_micro")
    before = digest(model)
    HeadInputs(model).set_heads(torch.randn(3, model.head_hidden_size), torch.ones(3), 0.5)
    assert digest(model) == before
    with torch.no_grad():
        next(model.parameters()).flatten()[0] += np.float32(1e-3)
    assert digest(model) != before
