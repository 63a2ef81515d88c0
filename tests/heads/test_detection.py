"""Detectors behind one interface: labels, sizes, targets with nothing in them, and that they learn."""

import sys
from dataclasses import replace

import pytest
import torch
from benchmarks.heads_matrix import by_heart
from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from glocal.errors import GlocalError
from glocal.heads import Detector, create_detector, create_segmenter
from glocal.heads.detection import DETECTORS, KINDS, detector_spec
from glocal.heads.transform import of_any_aspect_ratio
from tests.heads.scenes import RESNET, extractor, scene, tiny

MASKS = ("mask_rcnn", "cascade_mask_rcnn")


@pytest.mark.parametrize("kind", KINDS)
def test_losses_in_training_and_predictions_after(kind):
    torch.manual_seed(0)
    model = tiny(kind)
    images, targets = zip(scene(64, 64), scene(50, 61, seed=1), strict=True)
    before = [target["boxes"].clone() for target in targets]
    losses = model(list(images), list(targets))
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    for target, boxes in zip(targets, before, strict=True):
        assert torch.equal(target["boxes"], boxes)  # the caller's
        assert target["labels"].min() == 0
    with torch.no_grad():
        predictions = model.eval()(list(images))
    for image, found in zip(images, predictions, strict=True):
        height, width = image.shape[1:]
        assert found["boxes"].shape == (len(found["scores"]), 4)
        assert ((found["boxes"] >= 0) & (found["boxes"] <= torch.tensor([width, height, width, height]) + 1e-3)).all()
        assert ((found["labels"] >= 0) & (found["labels"] < 3)).all()
        assert ((found["scores"] >= 0) & (found["scores"] <= 1)).all()
        assert (found["scores"].diff() <= 1e-6).all()
        assert ("masks" in found) == (kind in MASKS)
        if kind in MASKS:
            assert found["masks"].shape == (len(found["scores"]), height, width)
            assert found["masks"].dtype == torch.bool


class Told(nn.Module):
    """Stands for a network: keeps the targets it gets, and finds them."""

    def __init__(self):
        super().__init__()
        self.targets = []

    def forward(self, images, targets=None):
        if targets is not None:
            self.targets = targets
            return {}
        return [
            {"boxes": t["boxes"], "labels": t["labels"], "scores": torch.ones(len(t["labels"]))} for t in self.targets
        ]


@pytest.mark.parametrize("first_label", [0, 1])
def test_classes_count_from_0_outside(first_label):
    network = Told()
    detector = Detector(network, num_classes=3, first_label=first_label)
    image, target = scene(count=3)
    detector([image], [target])
    assert network.targets[0]["labels"].tolist() == [first_label, 1 + first_label, 2 + first_label]
    (found,) = detector.eval()([image])
    assert torch.equal(found["labels"], target["labels"])


@pytest.mark.parametrize("kind", ["faster_rcnn", "fcos", "detr"])
def test_every_class_gets_its_logits(kind):
    """The last class is one that can be found: one logit too few, and it would be the background."""
    model = tiny(kind, num_classes=4).eval()
    head = {
        "faster_rcnn": lambda m: m.network.roi_heads.box_predictor.cls_score,
        "fcos": lambda m: m.network.head.classification_head.cls_logits,
        "detr": lambda m: m.network.model.class_labels_classifier,
    }[kind](model)
    assert head.bias.shape == ({"faster_rcnn": 5, "fcos": 4, "detr": 5}[kind],)  # with the background, without, with
    last = {"faster_rcnn": 4, "fcos": 3, "detr": 3}[kind]
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.full_like(head.bias, -20.0).index_fill(0, torch.tensor(last), 20.0))
        (found,) = model([scene()[0]])
    assert len(found["labels"])
    assert (found["labels"] == 3).all()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_one_and_many_objects(kind):
    torch.manual_seed(0)
    model = tiny(kind)
    for counts in ((0,), (0, 1), (1,), (500,)):
        images, targets = zip(*(scene(64, 70, count=count, seed=count) for count in counts), strict=True)
        losses = model(list(images), list(targets))
        assert all(loss.isfinite() for loss in losses.values()), counts
        model.zero_grad()
        sum(losses.values()).backward()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(33, 97), (64, 32), (120, 45)])
def test_odd_sizes(kind, size):
    torch.manual_seed(0)
    image, target = scene(*size)
    model = tiny(kind)
    assert all(loss.isfinite() for loss in model([image], [target]).values())
    with torch.no_grad():
        (found,) = model.eval()([image])
    assert (found["boxes"] <= torch.tensor([size[1], size[0]] * 2) + 1e-3).all()


@pytest.mark.parametrize("kind", ["faster_rcnn", "fcos", "deformable_detr"])
def test_an_image_gives_the_same_alone_and_in_a_batch(kind):
    torch.manual_seed(0)
    model = tiny(kind).eval()
    (first, _), (second, _) = scene(64, 64), scene(64, 64, seed=1)
    with torch.no_grad():
        together, alone = model([first, second])[1], model([second])[0]
    assert torch.allclose(together["boxes"], alone["boxes"], atol=1e-3)
    assert torch.allclose(together["scores"], alone["scores"], atol=1e-5)


@pytest.mark.parametrize("kind", ["fcos", "detr", "deformable_detr"])
def test_padding_changes_nothing(kind):
    """A narrow image beside a wide one is padded; where that reached the queries, its boxes would move."""
    torch.manual_seed(0)
    model = tiny(kind, strides=(8,) if kind == "detr" else (8, 16, 32)).eval()
    (narrow, _), (wide, _) = scene(64, 32), scene(64, 64, seed=1)
    with torch.no_grad():
        together, alone = model([narrow, wide])[0], model([narrow])[0]
    limit = {"fcos": 40, "detr": 6, "deformable_detr": 6}[kind]  # convolutions see across the seam
    assert (together["boxes"][:, [0, 2]] <= 32 + 1e-3).all()
    if kind != "fcos":
        assert (together["boxes"] - alone["boxes"]).abs().max() < limit


def test_boxes_are_in_pixels_of_the_given_image():
    """Doubling the image and what the detector resizes it to leaves the boxes where they were, doubled."""
    torch.manual_seed(0)
    model = tiny("fcos", min_size=64, max_size=64, score_thresh=0.0).eval()
    image, _ = scene(64, 64)
    twice = nn.functional.interpolate(image[None], scale_factor=2, mode="nearest")[0]
    with torch.no_grad():
        small, large = model([image])[0], model([twice])[0]
    assert torch.allclose(2 * small["boxes"][:5], large["boxes"][:5], atol=0.5)


@pytest.mark.parametrize("kind", ["retinanet", "detr"])
def test_images_are_normalised_as_the_backbone_says(kind):
    backbone = extractor(pretrained_cfg_overlay={"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)})
    model = create_detector(kind, backbone, 3, preset="small")
    transform = model.network.transform
    assert (transform.image_mean, transform.image_std) == ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    image = torch.rand(3, 128, 128)
    (batch, _) = transform([image])
    expected = (image - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor([0.5, 0.6, 0.7])[:, None, None]
    assert torch.allclose(batch.tensors[0], expected, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_coordinates_keep_32_bits_under_autocast(kind):
    """In bfloat16 every pixel from 256 on would be even."""
    torch.manual_seed(0)
    model = tiny(kind, **({} if "rcnn" in kind or "detr" in kind else {"score_thresh": 0.0}))
    image, target = scene(64, 500)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model([image], [target])
        sum(losses.values()).backward()
        with torch.no_grad():
            (found,) = model.eval()([image])
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32
    assert len(found["boxes"])
    if DETECTORS[kind].family != "detr":  # theirs are sigmoids, few of which are whole in 16 bits after the scaling
        assert not torch.equal(found["boxes"], found["boxes"].bfloat16().float())


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet"])
def test_anchors_keep_32_bits_under_autocast(kind):
    model = tiny(kind, min_size=64, max_size=600).eval()
    generator = model.network.rpn.anchor_generator if kind == "faster_rcnn" else model.network.anchor_generator
    seen = []
    generator.register_forward_hook(lambda _, __, anchors: seen.extend(anchors))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model([scene(64, 600)[0]])
    assert seen[0].dtype == torch.float32
    assert not torch.equal(seen[0], seen[0].bfloat16().float())


def test_a_module_as_backbone_is_used_itself():
    backbone = extractor()
    model = create_detector("faster_rcnn", backbone, 3, preset="small")
    assert model.network.backbone.pyramid.backbone is backbone


def test_any_model_of_timm_by_name():
    torch.manual_seed(0)
    model = create_detector("fcos", "vit_tiny_patch16_224", 3, preset="small", backbone_kwargs={"depth": 3})
    image, target = scene(90, 70)
    assert all(loss.isfinite() for loss in model([image], [target]).values())


def test_anchors_and_levels_follow_the_strides():
    model = create_detector("mask_rcnn", "resnet_micro", 80, backbone_kwargs=RESNET)
    assert model.network.rpn.anchor_generator.sizes == [[32], [64], [128], [256], [512]]
    assert model.network.roi_heads.box_roi_pool.featmap_names == ["0", "1", "2", "3"]
    one = create_detector("retinanet", "resnet_micro", 80, backbone_kwargs=RESNET)
    assert [round(sizes[0]) for sizes in one.network.anchor_generator.sizes] == [32, 64, 128, 256, 512]
    fcos = create_detector("fcos", "resnet_micro", 80, backbone_kwargs=RESNET)
    assert fcos.network.anchor_generator.sizes == [[8], [16], [32], [64], [128]]
    with torch.no_grad():
        maps = fcos.network.backbone(torch.randn(1, 3, 256, 384))
    assert [tuple(level.shape[2:]) for level in maps.values()] == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: create_detector("faster_rcn", "resnet_micro", 3), "detector: expected one of .*nearest: faster_rcnn"),
        (lambda: create_detector("fcos", "resnet_mikro", 3), "backbone: expected a name .*nearest: .*resnet_micro"),
        (lambda: create_detector("fcos", "resnet_micro", 3, preset="large"), "preset: expected one of coco, small"),
        (
            lambda: create_detector("fcos", "resnet_micro", 3, norm="batched"),
            "norm: expected one of batch, frozen, sync",
        ),
        (lambda: tiny("fcos", score_threshold=0.1), "fcos: no keyword 'score_threshold'; nearest: score_thresh"),
        (
            lambda: tiny("mask_rcnn", rpn_nms_tresh=0.1),
            "mask_rcnn: no keyword 'rpn_nms_tresh'; nearest: rpn_nms_thresh",
        ),
        (lambda: tiny("detr", num_querys=9), "detr: no keyword 'num_querys'; nearest: num_queries"),
        (lambda: tiny("fcos", frozen_stages=5), "frozen_stages: expected 0 to 4 for this backbone, got 5"),
        (
            lambda: create_detector("fcos", nn.Conv2d(3, 8, 3), 3),
            "backbone: expected a name or a module that gives maps",
        ),
        (lambda: create_detector("fcos", extractor(), 3, pretrained=True), "pretrained: only for a backbone by name"),
    ],
)
def test_mistakes_at_the_door(call, message):
    with pytest.raises(GlocalError, match=message):
        call()


@pytest.mark.parametrize(
    ("make", "module", "library"),
    [
        (lambda: tiny("detr"), "glocal.heads.detr", "transformers"),
        (
            lambda: create_segmenter("smp_unet", "resnet_micro", 3, backbone_kwargs=RESNET),
            "glocal.heads.smp",
            "segmentation_models_pytorch",
        ),
    ],
)
def test_a_library_that_is_not_installed_is_named(monkeypatch, make, module, library):
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(GlocalError, match=rf"{library} is not installed; pip install 'glocal\["):
        make()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("height", "width"), [(1, 500), (300, 2), (1, 1)])
def test_lines_and_dots(kind, height, width):
    """A side that torchvision would scale to nothing; the box is the whole image, before and after."""
    torch.manual_seed(0)
    model = tiny(kind)
    image = torch.rand(3, height, width)
    box = torch.tensor([[0.0, 0.0, width, height]])
    target = {"boxes": box, "labels": torch.tensor([1]), "masks": torch.ones(1, height, width, dtype=torch.bool)}
    losses = model([image, image], [target, target])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    _, (resized, _) = model.network.transform([image, image], [target, target])
    inner = model.network.transform([image])[0].image_sizes[0]
    assert min(inner) >= 1
    assert torch.allclose(resized["boxes"], torch.tensor([[0.0, 0.0, inner[1], inner[0]]]))
    with torch.no_grad():
        (found,) = model.eval()([image])
    assert (found["boxes"] <= torch.tensor([width, height] * 2) + 1e-3).all()
    assert "masks" not in found or found["masks"].shape[1:] == (height, width)


def test_masks_are_decided_as_torchvision_pastes_them():
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(9, 2, generator=generator) * 40
    boxes = torch.cat((corner, corner + 1 + torch.rand(9, 2, generator=generator) * 30), dim=1)
    small = torch.rand(9, 1, 28, 28, generator=generator)
    theirs = GeneralizedRCNNTransform(48, 64, [0.5] * 3, [0.2] * 3).eval()
    ours = of_any_aspect_ratio(theirs).eval()
    for number in (9, 0):
        found = [{"boxes": boxes[:number], "masks": small[:number]}]
        expected, got = (
            one.postprocess([dict(found[0])], [(60, 70)], [(71, 83)])[0]["masks"] for one in (theirs, ours)
        )
        assert got.shape == expected.shape
        assert torch.equal(got, expected >= 0.5)


def test_images_of_common_proportions_are_resized_as_torchvision_does():
    theirs = GeneralizedRCNNTransform(48, 64, [0.5] * 3, [0.2] * 3)
    ours = of_any_aspect_ratio(theirs)
    for size in ((40, 60), (64, 64), (7, 400), (333, 21)):
        image, target = scene(*size)
        (a, of_a), (b, of_b) = theirs([image], [dict(target)]), ours([image], [dict(target)])
        assert torch.equal(a.tensors, b.tensors)
        assert a.image_sizes == b.image_sizes
        assert all(torch.equal(of_a[0][name], of_b[0][name]) for name in target)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([1, 3])}, "labels: expected 0 to 2, got 1 to 3; there is no background class"),
        ({"labels": torch.tensor([-1, 0])}, "labels: expected 0 to 2, got -1 to 0"),
        ({"labels": torch.tensor([1])}, "expected one label per box, got 1 labels of 2 boxes"),
        (
            {"boxes": torch.tensor([[0.0, 0, 4, 4], [9, 9, 9, 20]])},
            r"boxes: expected x1 < x2 and y1 < y2 in pixels, got \[",
        ),
    ],
)
def test_wrong_targets_are_named(change, message):
    image, target = scene()
    with pytest.raises(GlocalError, match=message):
        tiny("fcos")([image], [target | change])


def test_training_asks_for_targets():
    with pytest.raises(GlocalError, match="targets: expected one per image in training, got none"):
        tiny("fcos")([scene()[0]])
    with pytest.raises(GlocalError, match="got 1 for 2 images"):
        tiny("fcos")([scene()[0]] * 2, [scene()[1]])


def test_the_specs_of_kinds():
    for kind, spec in DETECTORS.items():
        assert spec.masks == bool(spec.without_masks)
        if spec.masks:
            assert DETECTORS[spec.without_masks] == replace(spec, masks=False, without_masks=""), kind
    with pytest.raises(GlocalError, match=r"detector: expected one of faster_rcnn, .*nearest: retinanet"):
        detector_spec("retina")
    assert isinstance(tiny("faster_rcnn").network, FasterRCNN)
    assert isinstance(tiny("atss").network, FCOS)


# A diagonal of the matrix of docs/results/heads.md; benchmarks/heads_matrix.py fills in the rest.
LEARNT = {"fcos": "cvt_micro"}
LEARNT_SLOWLY = {
    "atss": "resnet_micro", "mask_rcnn": "conformer_micro", "retinanet": "cat_micro", "cascade_mask_rcnn": "vit_micro",
    "detr": "resnet_micro", "deformable_detr": "t2t_vit_micro", "rt_detr": "resnet18d",
}  # fmt: skip


@pytest.mark.parametrize(("kind", "backbone"), LEARNT.items())
def test_an_image_learnt_by_heart(kind, backbone):
    assert by_heart(kind, backbone, limit=300)["ap50"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "backbone"), LEARNT_SLOWLY.items())
def test_an_image_learnt_by_heart_slowly(kind, backbone):
    assert by_heart(kind, backbone)["ap50"] == 1
