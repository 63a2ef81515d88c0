"""The adapter's levels, and what is built on them: torchvision's detectors, smp's decoders, transformers' wrapper."""

import warnings
from collections import OrderedDict

import pytest
import timm
import torch
from timm.models._features import FeatureInfo
from torch import nn

import glocal
from glocal.heads import PyramidAdapter
from tests.randomized import calm, undrawn

SMALL = {
    "glocal_resnet18": {"out_indices": (0, 1, 2, 3)},
    "botnet50": {"depths": (1, 1, 1, 1)},
    "glocal_vit_tiny_patch16_224": {"depth": 2, "out_indices": (1,)},
    "t2t_vit_7": {"depth": 2, "out_indices": (0, 1)},
    "cvt_13": {"depths": (1, 1, 1)},
    "cat_tiny": {"depths": (1, 1, 1, 1)},
    "conformer_tiny_patch16": {"depth": 6},
}
PYRAMIDS = [name for name in SMALL if "vit" not in name and "cvt" not in name]


def extractor(name: str) -> nn.Module:
    return timm.create_model(name, features_only=True, **SMALL[name])


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(64, 96), (70, 90)])
def test_four_levels_with_gradients(name, size):
    adapter = PyramidAdapter(extractor(name), dim=32)
    levels = adapter(torch.randn(2, 3, *size))
    assert [level.shape[1] for level in levels] == adapter.channels
    for level, stride in zip(levels, (4, 8, 16, 32), strict=True):
        for side, length in zip(level.shape[2:], size, strict=True):
            # a transposed convolution makes 4 of a patch of 16 that the image fills in part
            assert length / stride - 1 <= side <= -(-length // 16) * 16 / stride + 1
    sum(level.square().mean() for level in levels).backward()
    assert all(p.grad is not None for p in adapter.levels.parameters())


def test_a_pyramid_passes_through():
    backbone = extractor("glocal_resnet18").eval()
    x = torch.randn(1, 3, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(PyramidAdapter(backbone)(x), backbone(x), strict=True))


def test_what_a_backbone_has_not_is_made():
    """Of two maps of one stride the deeper; coarser levels are pooled, finer ones made of the finest."""

    class Maps(nn.Module):
        def __init__(self, *strides):
            super().__init__()
            self.strides = strides
            info = [{"num_chs": 8 + i, "reduction": s, "module": f"m{i}"} for i, s in enumerate(strides)]
            self.feature_info = FeatureInfo(info, tuple(range(len(info))))

        def forward(self, x):
            return [torch.full((1, 8 + i, 64 // s, 64 // s), float(i)) for i, s in enumerate(self.strides)]

    adapter = PyramidAdapter(Maps(2, 4, 8, 8), dim=16)
    assert adapter.channels == [9, 11, 11, 11]
    assert [float(level.mean()) for level in adapter(torch.zeros(1, 3, 64, 64))] == [1, 3, 3, 3]
    adapter = PyramidAdapter(Maps(8, 16, 32), dim=16)
    assert adapter.channels == [16, 8, 9, 10]
    assert [level.shape[2] for level in adapter(torch.zeros(1, 3, 64, 64))] == [16, 8, 4, 2]
    assert PyramidAdapter(Maps(4, 8, 16, 32), strides=(8, 32)).channels == [9, 11]
    adapter = PyramidAdapter(Maps(14, 14), dim=16)  # strides of 3.5, 7, 14 and 28
    assert [level.shape[2] for level in adapter(torch.zeros(1, 3, 64, 64))] == [16, 8, 4, 2]


def test_other_strides_are_named():
    with pytest.raises(ValueError, match=r"got \[8, 32\]; choose them with out_indices"):
        PyramidAdapter(timm.create_model("glocal_resnet18", features_only=True, out_indices=(1, 3)))


class Levels(nn.Module):
    """The adapter and torchvision's FPN, as its detectors take a backbone."""

    out_channels = 16

    def __init__(self, name: str):
        super().__init__()
        from torchvision.ops import FeaturePyramidNetwork

        self.adapter = PyramidAdapter(extractor(name), dim=16)
        self.fpn = FeaturePyramidNetwork(self.adapter.channels, self.out_channels)

    def forward(self, x):
        return self.fpn(OrderedDict((str(i), level) for i, level in enumerate(self.adapter(x))))


@pytest.mark.parametrize("name", SMALL)
def test_torchvisions_retinanet_trains_a_step_and_detects(name):
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    torch.manual_seed(0)
    anchors = AnchorGenerator(sizes=((16,), (32,), (64,), (128,)), aspect_ratios=((1.0,),) * 4)
    detector = RetinaNet(Levels(name), num_classes=3, anchor_generator=anchors, min_size=64, max_size=96)
    targets = [{"boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]), "labels": torch.tensor([1])}]
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        loss = sum(detector([torch.ones(3, 64, 80)], targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    (found,) = detector.eval()([torch.ones(3, 64, 80)])
    assert found["boxes"].shape[1] == 4


@pytest.mark.parametrize("name", PYRAMIDS)
@pytest.mark.parametrize("decoder", ["Unet", "FPN"])
def test_smp_takes_pyramids_by_name(name, decoder):
    smp = pytest.importorskip("segmentation_models_pytorch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(smp, decoder)(f"tu-{name}", encoder_weights=None, classes=2)
    masks = model(torch.randn(2, 3, 64, 96))
    assert masks.shape == (2, 2, 64, 96)
    masks.square().mean().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.encoder.parameters())


def test_smp_takes_cvts_three_stages_by_name():
    smp = pytest.importorskip("segmentation_models_pytorch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = smp.Unet("tu-cvt_13", encoder_weights=None, classes=2, encoder_depth=4, decoder_channels=(32, 16, 8, 8))
    assert model(torch.randn(1, 3, 64, 96)).shape == (1, 2, 64, 96)


def test_transformers_wraps_a_model_as_any_of_timms():
    transformers = pytest.importorskip("transformers")
    config = transformers.TimmWrapperConfig(architecture="cvt_micro", num_labels=4, do_pooling=True)
    wrapped = transformers.TimmWrapperForImageClassification(config).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(wrapped(x).logits, wrapped.timm_model(x))
    assert wrapped(x).logits.shape == (2, 4)


@pytest.mark.parametrize("name", glocal.list_models("*_micro"))
def test_lightning_trains_every_family(name):
    import pytorch_lightning as pl

    class Task(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = calm(undrawn(timm.create_model, name, num_classes=2))

        def training_step(self, batch, _):
            return self.model.training_loss(*batch, torch.nn.functional.cross_entropy)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    task = Task()
    before = {key: value.clone() for key, value in task.model.named_parameters()}
    images = torch.randn(8, 3, 32, 32)
    data = torch.utils.data.DataLoader(list(zip(images, torch.tensor([0, 1] * 4), strict=True)), batch_size=4)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pl.Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **options).fit(task, data)
    moved = [not torch.equal(before[key], value) for key, value in task.model.named_parameters()]
    assert sum(moved) > 0.9 * len(moved)
