"""BoTNet: Bottleneck Transformers for Visual Recognition, Srinivas et al. 2021. https://arxiv.org/abs/2101.11605

A ResNet with attention in its last stage: multi-head self-attention over the map replaces the 3x3 convolution of a
bottleneck. No weights were released; the authors' reference code is a short listing, and public versions differ from
it and from one another (docs/botnet.md has the table).
"""

from functools import partial
from typing import Any

from timm.layers import create_act_layer
from timm.models import generate_default_cfgs, register_model

from glocal.layers import MHSA2d
from glocal.models._backbone import build, cfg
from glocal.models.resnet import Bottleneck, ResNet, Shortcut


class BottleneckTransformer(Bottleneck):
    """Bottleneck with MHSA in place of its 3x3 convolution (Fig. 1 right; Tab. 1, c5).

    Args:
        in_chs, width, stride, drop_path, act: as in `BasicBlock`.
        size: rows and columns of the input map at ``img_size``, for the position tables.
        se_ratio: ignored: attention blocks have no squeeze-and-excitation (§4.8.4).
        num_heads: heads of the attention (4 in §3).
        position: "relative", "absolute" or "none" (Tab. 4).
        shortcut_act: activation on the projected shortcut, as in the authors' reference code; False for ResNet's.
    """

    def __init__(
        self,
        in_chs: int,
        width: int,
        *,
        stride: int = 1,
        size: tuple[int, int] = (14, 14),
        drop_path: float = 0.0,
        act: str = "relu",
        se_ratio: float = 0.0,
        num_heads: int = 4,
        position: str = "relative",
        shortcut_act: bool = True,
    ):
        super().__init__(in_chs, width, stride=stride, size=size, drop_path=drop_path, act=act)
        self.conv2 = MHSA2d(width, num_heads, size=size, position=position, stride=stride)
        if shortcut_act and isinstance(self.downsample, Shortcut):
            self.downsample.append(create_act_layer(act, inplace=True))


class BoTNet(ResNet):
    """ResNet with attention in some of its stages (§3.1, Tab. 1; stride-1 forms §4.8).

    Args:
        depths: blocks in each stage.
        attention_stages: stages, from 1 to 4, with attention blocks ("c5" of the paper is stage 4).
        num_heads: heads of the attention.
        position: "relative", "absolute" or "none".
        shortcut_act: activation on the projected shortcut of attention blocks; False for ResNet's plain one.
        last_stride: stride of stage 4; 1 gives the paper's S1 forms.
        kwargs: arguments of `ResNet`.

    Raises:
        ValueError: if an entry of attention_stages is not a stage.
    """

    def __init__(
        self,
        depths: tuple[int, ...] = (3, 4, 6, 3),
        *,
        attention_stages: tuple[int, ...] = (4,),
        num_heads: int = 4,
        position: str = "relative",
        shortcut_act: bool = True,
        last_stride: int = 2,
        **kwargs: Any,
    ):
        if not set(attention_stages) <= {1, 2, 3, 4}:
            raise ValueError(f"attention_stages: expected stages from 1 to 4, got {tuple(attention_stages)}")
        attending = partial(BottleneckTransformer, num_heads=num_heads, position=position, shortcut_act=shortcut_act)
        blocks = tuple(attending if stage in attention_stages else Bottleneck for stage in (1, 2, 3, 4))
        super().__init__(blocks, depths, **{"strides": (1, 2, 2, last_stride), **kwargs})

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if ".position." in name}


# the paper trains and tests as its ResNet baselines do (§4.8, §A.2); there is no released evaluation to copy from
_PLAIN, _S1 = cfg(pool_size=(7, 7)), cfg(pool_size=(14, 14))
default_cfgs = generate_default_cfgs(
    {
        "botnet50.untrained": _PLAIN,
        "botnet101.untrained": _PLAIN,
        "botnet152.untrained": _PLAIN,
        "botnet_s1_50.untrained": _S1,
        "botnet_s1_59.untrained": _S1,
        "botnet_s1_77.untrained": _S1,
        "botnet_s1_110.untrained": _S1,
        "botnet_s1_128.untrained": _S1,
    }
)


@register_model
def botnet50(pretrained: bool = False, **kwargs: Any) -> BoTNet:
    """BoTNet-50: 20.8M parameters (Tab. 1), 4.0 GMACs at 224."""
    return build(BoTNet, "botnet50", pretrained, kwargs, depths=(3, 4, 6, 3))


@register_model
def botnet101(pretrained: bool = False, **kwargs: Any) -> BoTNet:
    """BoTNet-101: attention in the last stage of ResNet-101."""
    return build(BoTNet, "botnet101", pretrained, kwargs, depths=(3, 4, 23, 3))


@register_model
def botnet152(pretrained: bool = False, **kwargs: Any) -> BoTNet:
    """BoTNet-152: attention in the last stage of ResNet-152."""
    return build(BoTNet, "botnet152", pretrained, kwargs, depths=(3, 8, 36, 3))


@register_model
def botnet_s1_50(pretrained: bool = False, **kwargs: Any) -> BoTNet:
    """BoTNet-S1-50: stride 1 in the last stage (§4.8)."""
    return build(BoTNet, "botnet_s1_50", pretrained, kwargs, depths=(3, 4, 6, 3), last_stride=1)


def _s1(name: str, depths: tuple[int, ...], pretrained: bool, kwargs: dict[str, Any]) -> BoTNet:
    # the T series adds squeeze-and-excitation, 1/16 wide, to the blocks without attention, and SiLU (§4.8.4). The
    # published parameters count it in every block, and no BatchNorm, bias or position table: docs/botnet.md
    return build(BoTNet, name, pretrained, kwargs, depths=depths, last_stride=1, se_ratio=1 / 16, act="silu")


@register_model
def botnet_s1_59(pretrained: bool = False, **kwargs: Any) -> BoTNet:
    """BoTNet-S1-59 (T3): 30.5M parameters (33.5M published), 7.3 GMACs at 224 (§4.8)."""
    return _s1("botnet_s1_59", (3, 4, 6, 6), pretrained, kwargs)


@register_model
def botnet_s1_77(pretrained: bool = False, **kwargs: Any) -> BoTNet:
    """BoTNet-S1-77 (T6 at 320): 47.9M parameters (53.9M published), 23.3 GMACs at 320 (§4.8)."""
    return _s1("botnet_s1_77", (3, 4, 6, 12), pretrained, kwargs)


@register_model
def botnet_s1_110(pretrained: bool = False, **kwargs: Any) -> BoTNet:
    """BoTNet-S1-110 (T4): 51.7M parameters (54.7M published), 10.9 GMACs at 224 (§4.8)."""
    return _s1("botnet_s1_110", (3, 4, 23, 6), pretrained, kwargs)


@register_model
def botnet_s1_128(pretrained: bool = False, **kwargs: Any) -> BoTNet:
    """BoTNet-S1-128 (T5 at 256, T7 at 384): 69.2M parameters (75.1M published), 45.8 GMACs at 384 (§4.8)."""
    return _s1("botnet_s1_128", (3, 4, 23, 12), pretrained, kwargs)
