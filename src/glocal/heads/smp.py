"""Every backbone as an encoder of segmentation_models_pytorch (Iakubovskii 2019), for use with its decoders."""

from typing import Any

import segmentation_models_pytorch  # type: ignore[import-untyped]
import torch.nn.functional as F
from segmentation_models_pytorch.encoders import encoders  # type: ignore[import-untyped]
from segmentation_models_pytorch.encoders._base import EncoderMixin  # type: ignore[import-untyped]
from torch import Tensor, nn

from glocal.heads.backbone import check_keywords
from glocal.heads.pyramid import STRIDES, PyramidAdapter

ENCODER = "glocal"


class Encoder(nn.Module, EncoderMixin):
    """A pyramid with smp's encoder interface: the image, then maps at strides 2, 4, 8, 16 and 32.

    For a backbone without maps of stride 2 a convolution computes them, for the last step of the decoders.

    Args:
        backbone: image -> maps.
        depth: strides used, 2 the first.
        output_stride: coarsest stride; coarser maps are upsampled to it (smp would dilate convolutions, which not
            every backbone has).
        stem_width: channels of the convolution.
    """

    def __init__(self, backbone: Any, depth: int = 5, output_stride: int = 32, stem_width: int = 32):
        super().__init__()
        has_stem = 2 in backbone.feature_info.reduction()
        self.pyramid = PyramidAdapter(backbone, strides=(2, *STRIDES) if has_stem else STRIDES)
        self.stem = (
            None
            if has_stem
            else nn.Sequential(
                nn.Conv2d(3, stem_width, 3, stride=2, padding=1, bias=False), nn.GroupNorm(8, stem_width), nn.ReLU()
            )
        )
        self._depth = depth
        self._in_channels = 3
        self._output_stride = output_stride
        self._out_channels = [3, *([] if has_stem else [stem_width]), *self.pyramid.channels]

    def make_dilated(self, output_stride: int) -> None:
        """Called by smp if output_stride is not 32; `forward` implements it."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> x and the maps of the first `depth` strides."""
        maps = self.pyramid(x)
        maps = maps if self.stem is None else [self.stem(x), *maps]
        finest = self._output_stride.bit_length() - 2  # index of the map of this stride
        size = maps[finest].shape[-2:]
        maps[finest + 1 :] = [F.interpolate(coarse, size=size, mode="bilinear") for coarse in maps[finest + 1 :]]
        return [x, *maps][: self._depth + 1]


def create_smp(name: str, backbone: nn.Module, num_classes: int, **kwargs: Any) -> nn.Module:
    """A model of smp on any backbone.

    Args:
        name: of its class, in lower case.
        backbone: image -> maps.
        num_classes: of the logits.
        kwargs: of its class.
    """
    network = segmentation_models_pytorch.MODEL_ARCHITECTURES_MAPPING[name]
    check_keywords(f"smp_{name}", kwargs, network)
    encoders[ENCODER] = {"encoder": Encoder, "pretrained_settings": {}, "params": {"backbone": backbone}}
    try:  # smp copies the backbone into the model
        return network(encoder_name=ENCODER, encoder_weights=None, classes=num_classes, **kwargs)
    finally:
        del encoders[ENCODER]
