"""Detectors on any backbone: torchvision's, and two built from its modules; DETRs are in `glocal.heads.detr`.

All share one interface. Classes are 0 .. num_classes - 1 in targets and predictions, without a background class.
"""

import re
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from glocal.errors import GlocalError, check_choice
from glocal.heads.atss import ATSS
from glocal.heads.backbone import check_keywords, create_backbone, image_statistics
from glocal.heads.cascade import CascadeRoIHeads
from glocal.heads.norm import regroup
from glocal.heads.pyramid import PyramidAdapter
from glocal.heads.transform import of_any_aspect_ratio


@dataclass(frozen=True)
class DetectorSpec:
    """Properties of a detector.

    Attributes:
        family: its kind of construction.
        preset: its row in each of `PRESETS`; by default the family's.
        masks: whether it predicts instance masks.
        without_masks: the same detector without masks.
        cascade: whether it has a cascade of three box heads (Cai & Vasconcelos 2018).
        knows_padding: whether it takes a padding mask; if not, images are resized to a fixed size.
    """

    family: Literal["two_stage", "one_stage", "detr"]
    preset: str = ""
    masks: bool = False
    without_masks: str = ""
    cascade: bool = False
    knows_padding: bool = True


DETECTORS = {
    "faster_rcnn": DetectorSpec("two_stage"),
    "mask_rcnn": DetectorSpec("two_stage", masks=True, without_masks="faster_rcnn"),
    "cascade_rcnn": DetectorSpec("two_stage", cascade=True),
    "cascade_mask_rcnn": DetectorSpec("two_stage", cascade=True, masks=True, without_masks="cascade_rcnn"),
    "retinanet": DetectorSpec("one_stage"),
    "fcos": DetectorSpec("one_stage"),
    "atss": DetectorSpec("one_stage"),
    "detr": DetectorSpec("detr"),
    "deformable_detr": DetectorSpec("detr", preset="deformable_detr"),
    "rt_detr": DetectorSpec("detr", preset="rt_detr", knows_padding=False),
}
KINDS = tuple(DETECTORS)

Target = dict[str, Tensor]

_SMALL = {"min_size": 128, "max_size": 128}
_NARROW = {
    "d_model": 64, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128, "decoder_layers": 2, "dropout": 0.0, "num_queries": 30,
}  # fmt: skip

# Settings by image and object size. "coco": the published settings, sides of 800 to 1333 pixels.
# "small": images of about 128 pixels with objects from 8 pixels on, heads for two CPU cores.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "coco": {
        "two_stage": {"strides": (4, 8, 16, 32), "channels": 256, "hidden": 1024, "anchor_size": 32},
        "one_stage": {"strides": (8, 16, 32), "channels": 256, "anchor_size": 32},
        "detr": {"strides": (32,)},
        "deformable_detr": {"strides": (8, 16, 32)},
        "rt_detr": {"strides": (8, 16, 32), "fixed_size": (640, 640)},
    },
    "small": {
        "two_stage": {
            **_SMALL, "strides": (4, 8, 16, 32), "channels": 64, "hidden": 256, "anchor_size": 16,
            "rpn_pre_nms_top_n_train": 400, "rpn_pre_nms_top_n_test": 400,
            "rpn_post_nms_top_n_train": 200, "rpn_post_nms_top_n_test": 200, "box_batch_size_per_image": 32,
        },
        "one_stage": {**_SMALL, "strides": (4, 8, 16), "channels": 64, "anchor_size": 16},
        "detr": {**_SMALL, **_NARROW, "strides": (8,), "encoder_layers": 2},
        "deformable_detr": {
            **_SMALL, **_NARROW, "strides": (4, 8, 16), "num_feature_levels": 3, "encoder_layers": 2
        },
        "rt_detr": {
            **_SMALL, **_NARROW, "strides": (4, 8, 16), "encoder_hidden_dim": 64, "decoder_in_channels": [64] * 3,
            "num_denoising": 20,
        },
    },
}  # fmt: skip


# Modules whose outputs become coordinates. Under autocast these would stay in 16 bits, where bfloat16 rounds pixels
# from 256 on to multiples of 2, from 1024 on of 8.
FLOAT32 = re.compile(
    r"backbone|head|rpn\.head|roi_heads\.(box_predictor|box_predictors\.\d|mask_predictor)|model|.*bbox_(predictor|embed\.\d+)"
)


def _in_float32(module: nn.Module, args: Any, out: Any) -> Any:
    if isinstance(out, Tensor):
        return out.float() if out.is_floating_point() else out
    if isinstance(out, dict):
        for name, part in out.items():
            out[name] = _in_float32(module, args, part)
        return out
    return type(out)(_in_float32(module, args, part) for part in out) if isinstance(out, list | tuple) else out


class Detector(nn.Module):
    """A detection network behind the common interface.

    Args:
        network: as torchvision's detectors: images and targets -> losses in training, else predictions.
        num_classes: of objects.
        first_label: the network's label of class 0; 1 if 0 is its background.
    """

    def __init__(self, network: nn.Module, num_classes: int, first_label: int = 0):
        super().__init__()
        self.network = network
        for name, module in network.named_modules():
            if FLOAT32.fullmatch(name):
                module.register_forward_hook(_in_float32)
        self.num_classes = num_classes
        self.first_label = first_label

    def forward(self, images: list[Tensor], targets: list[Target] | None = None) -> Any:
        """Losses in training, predictions in evaluation.

        Args:
            images: (3, H, W) floats in [0, 1], of any sizes; they are normalised, resized and padded here.
            targets: in training one dict per image: `boxes` (N, 4) x1, y1, x2, y2 in pixels of that image, `labels`
                (N,) integers 0 .. num_classes - 1, and for mask detectors `masks` (N, H, W). N may be 0.

        Returns:
            In training a dict of scalar losses to be summed. In evaluation one dict per image, by descending score:
            `boxes` (M, 4) and `labels` (M,) as in targets, `scores` (M,) in [0, 1], and for mask detectors `masks`
            (M, H, W) booleans.

        Raises:
            GlocalError: in training, if targets are missing, or labels or boxes are invalid.
        """
        if self.training:
            return self.network(images, [self._checked(target) for target in self._one_each(images, targets)])
        return [self._to_classes(detections) for detections in self.network(images)]

    def _one_each(self, images: list[Tensor], targets: list[Target] | None) -> list[Target]:
        if targets is None or len(targets) != len(images):
            got = "none" if targets is None else f"{len(targets)} for {len(images)} images"
            raise GlocalError(f"targets: expected one per image in training, got {got}")
        return targets

    def _checked(self, target: Target) -> Target:
        boxes, labels = target["boxes"].reshape(-1, 4).float(), target["labels"].long()
        if len(boxes) != len(labels):
            raise GlocalError(f"targets: expected one label per box, got {len(labels)} labels of {len(boxes)} boxes")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            span = f"{int(labels.min())} to {int(labels.max())}"
            raise GlocalError(f"labels: expected 0 to {self.num_classes - 1}, got {span}; there is no background class")
        if (boxes[:, 2:] <= boxes[:, :2]).any():
            wrong = boxes[(boxes[:, 2:] <= boxes[:, :2]).any(1)][0].tolist()
            raise GlocalError(f"boxes: expected x1 < x2 and y1 < y2 in pixels, got {wrong}")
        return {**target, "boxes": boxes, "labels": labels + self.first_label}

    def _to_classes(self, detections: Target) -> Target:
        detections = {**detections, "labels": detections["labels"] - self.first_label}
        if "masks" in detections:
            detections["masks"] = detections["masks"][:, 0]
        return detections


class Levels(nn.Module):
    """Backbone, pyramid and FPN (Lin et al. 2017) with the interface of torchvision's detection backbones.

    Args:
        pyramid: image -> maps.
        channels: of every level.
        coarser: adds one or two coarser levels.
    """

    def __init__(self, pyramid: PyramidAdapter, channels: int, coarser: ExtraFPNBlock):
        super().__init__()
        self.out_channels = channels
        self.pyramid = pyramid
        self.fpn = FeaturePyramidNetwork(pyramid.channels, channels, extra_blocks=coarser)
        self.num_levels = len(pyramid.channels) + (2 if isinstance(coarser, LastLevelP6P7) else 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> (B, channels, h, w) maps by name, "0" the finest."""
        return self.fpn(OrderedDict((str(i), level) for i, level in enumerate(self.pyramid(x))))


def detector_spec(kind: str) -> DetectorSpec:
    """Properties of a detector by its name.

    Raises:
        GlocalError: for an unknown name.
    """
    check_choice("detector", kind, KINDS)
    return DETECTORS[kind]


def create_detector(
    kind: str,
    backbone: str | nn.Module,
    num_classes: int,
    *,
    preset: str = "coco",
    pretrained: bool = False,
    weights: str | Path | None = None,
    norm: str = "batch",
    frozen_stages: int = 0,
    backbone_kwargs: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Detector:
    """A detector on a backbone.

    Args:
        kind: a key of `DETECTORS`, such as "faster_rcnn".
        backbone: a name of glocal or timm, or a module made with ``features_only=True``. Its configuration gives the
            mean and std that images are normalised with.
        num_classes: of objects, without background.
        preset: "coco" for the published settings, "small" for images of about 128 pixels on a CPU.
        pretrained: load timm's weights into the backbone.
        weights: a checkpoint file for the backbone.
        norm: the backbone's BatchNorm: "batch", "frozen" or "sync", see `create_backbone`.
        frozen_stages: stages of the backbone to freeze, with its stem.
        backbone_kwargs: further keywords of the backbone.
        kwargs: override the preset: `min_size` and `max_size` in pixels, of the shorter and the longer side that images
            are resized to; `strides` of the levels taken from the backbone; `channels` of each; `anchor_size` in pixels
            on the finest level, doubling from level to level; `hidden` units of box heads; and any keyword of
            torchvision's class, or of transformers' configuration for the DETR kinds (`num_queries`, `d_model`, ...).

    Raises:
        GlocalError: if the kind, a keyword or the backbone is unknown, or a library is not installed.
    """
    spec = detector_spec(kind)
    check_choice("preset", preset, tuple(PRESETS))
    kwargs = {**PRESETS[preset][spec.preset or spec.family], **kwargs}
    strides = kwargs.pop("strides")
    features = create_backbone(
        backbone,
        pretrained=pretrained,
        weights=weights,
        norm=norm,
        frozen_stages=frozen_stages,
        coarsest=max(strides),
        **(backbone_kwargs or {}),
    )
    mean, std = image_statistics(features)
    kwargs = {"image_mean": mean, "image_std": std, **kwargs}
    if spec.family == "detr":
        try:
            from glocal.heads.detr import create_detr
        except ModuleNotFoundError as error:
            raise GlocalError(f"{kind}: {error.name} is not installed; pip install 'glocal[detect]'") from error
        return Detector(create_detr(kind, features, num_classes, strides=strides, **kwargs), num_classes)
    make = _one_stage if spec.family == "one_stage" else _two_stage
    network = make(kind, features, num_classes, strides=strides, **kwargs)
    network.transform = of_any_aspect_ratio(network.transform)
    return Detector(network, num_classes, first_label=1 if spec.family == "two_stage" else 0)


def _one_stage(
    kind: str,
    backbone: nn.Module,
    num_classes: int,
    *,
    strides: tuple[int, ...],
    channels: int,
    anchor_size: float,
    **kwargs: Any,
) -> Any:
    """RetinaNet (Lin et al. 2017), FCOS (Tian et al. 2019) or ATSS (Zhang et al. 2020).

    Groups of one channel in FCOS's head are merged (`regroup`): a level of one pixel could not be normalised.
    """
    network = {"retinanet": RetinaNet, "fcos": FCOS, "atss": ATSS}[kind]
    check_keywords(kind, kwargs, network, more=("size_divisible", "fixed_size"))
    pyramid = PyramidAdapter(backbone, channels, strides)
    # RetinaNet's P6 is computed from the backbone's last map, FCOS's from the FPN's
    coarser = LastLevelP6P7(pyramid.channels[-1] if kind == "retinanet" else channels, channels)
    levels = Levels(pyramid, channels, coarser)
    if kind == "retinanet":  # three sizes per octave, §4 there
        sizes = [[anchor_size * 2 ** (i + third / 3) for third in range(3)] for i in range(levels.num_levels)]
        anchors = AnchorGenerator(sizes, [[0.5, 1.0, 2.0]] * len(sizes))
    else:  # one point per location: its box has the stride as its side
        sides = [[strides[0] * 2**i] for i in range(levels.num_levels)]
        anchors = AnchorGenerator(sides, [[1.0]] * len(sides))
    detector = network(levels, num_classes, anchor_generator=anchors, **kwargs)
    regroup(detector.head)
    return detector


def _two_stage(
    kind: str,
    backbone: nn.Module,
    num_classes: int,
    *,
    strides: tuple[int, ...],
    channels: int,
    hidden: int,
    anchor_size: float,
    **kwargs: Any,
) -> Any:
    """Faster R-CNN (Ren et al. 2015), Mask R-CNN (He et al. 2017), both with FPN, and their cascades."""
    spec = DETECTORS[kind]
    check_keywords(kind, kwargs, FasterRCNN, more=("size_divisible", "fixed_size"))
    levels = Levels(PyramidAdapter(backbone, channels, strides), channels, LastLevelMaxPool())
    names = [str(i) for i in range(len(strides))]
    sizes = [[anchor_size * 2**i] for i in range(levels.num_levels)]
    parts: dict[str, Any] = {
        "rpn_anchor_generator": AnchorGenerator(sizes, [[0.5, 1.0, 2.0]] * len(sizes)),
        "box_roi_pool": MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2),
        "box_head": TwoMLPHead(channels * 7 * 7, hidden),
        "box_predictor": FastRCNNPredictor(hidden, num_classes + 1),
    }
    masks = {}
    if spec.masks:
        masks = {
            "mask_roi_pool": MultiScaleRoIAlign(names, output_size=14, sampling_ratio=2),
            "mask_head": MaskRCNNHeads(channels, (channels,) * 4, dilation=1),
            "mask_predictor": MaskRCNNPredictor(channels, channels, num_classes + 1),
        }
    network = (MaskRCNN if masks else FasterRCNN)(levels, **{**parts, **masks, **kwargs})
    if spec.cascade:
        network.roi_heads = CascadeRoIHeads(network.roi_heads, num_classes + 1, channels * 7 * 7, hidden)
    return network
