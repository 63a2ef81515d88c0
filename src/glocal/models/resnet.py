"""ResNet: Deep Residual Learning for Image Recognition, He et al. 2016. https://arxiv.org/abs/1512.03385

The network of torchvision and timm: the stride of a bottleneck is in its 3x3 convolution ("v1.5"; the paper has it in
the first 1x1), parameter names are theirs, so checkpoints are exchangeable.
"""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from timm.layers import DropPath, SEModule, create_act_layer, create_classifier, to_2tuple
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from glocal.checkpoints import resnet as names
from glocal.models._backbone import Backbone, StateDict, build, cfg, channels_last_on_cpu, drop_path_rates


class Shortcut(nn.Sequential):
    """Projection of the identity where stride or width changes: 1x1 convolution and BatchNorm (§3.3, option B)."""

    def __init__(self, in_chs: int, out_chs: int, stride: int):
        super().__init__(nn.Conv2d(in_chs, out_chs, 1, stride=stride, bias=False), nn.BatchNorm2d(out_chs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (§4.1, Fig. 5 left).

    Args:
        in_chs: channels of the input.
        width: channels of the convolutions and of the output.
        stride: stride of the first convolution.
        size: rows and columns of the input map; only attention blocks use it.
        drop_path: probability with which the residual branch is dropped in training.
        act: name of timm's activation.
        se_ratio: width of a squeeze-and-excitation gate on the branch, relative to the output; 0 for none.
    """

    expansion: ClassVar[int] = 1

    def __init__(
        self,
        in_chs: int,
        width: int,
        *,
        stride: int = 1,
        size: tuple[int, int] = (0, 0),
        drop_path: float = 0.0,
        act: str = "relu",
        se_ratio: float = 0.0,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(in_chs, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = create_act_layer(act, inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.se = SEModule(width, rd_ratio=se_ratio) if se_ratio else nn.Identity()
        self.drop_path = DropPath(drop_path)
        self.downsample = Shortcut(in_chs, width, stride) if stride != 1 or in_chs != width else nn.Identity()
        self.act2 = create_act_layer(act, inplace=True)

    def last_norm(self) -> nn.BatchNorm2d:
        """The BatchNorm that ends the residual branch."""
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chs, H, W) -> (B, width, ceil(H / stride), ceil(W / stride))."""
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.se(self.bn2(self.conv2(y)))
        y = self.drop_path(y)
        y += self.downsample(x)
        return self.act2(y)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution (§4.1, Fig. 5 right). Arguments as `BasicBlock`; the output is 4 x width wide."""

    expansion: ClassVar[int] = 4

    def __init__(
        self,
        in_chs: int,
        width: int,
        *,
        stride: int = 1,
        size: tuple[int, int] = (0, 0),
        drop_path: float = 0.0,
        act: str = "relu",
        se_ratio: float = 0.0,
    ):
        super().__init__()
        out_chs = width * self.expansion
        self.conv1 = nn.Conv2d(in_chs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = create_act_layer(act, inplace=True)
        self.conv2: nn.Module = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = create_act_layer(act, inplace=True)
        self.conv3 = nn.Conv2d(width, out_chs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_chs)
        self.se = SEModule(out_chs, rd_ratio=se_ratio) if se_ratio else nn.Identity()
        self.drop_path = DropPath(drop_path)
        self.downsample: nn.Module = (
            Shortcut(in_chs, out_chs, stride) if stride != 1 or in_chs != out_chs else nn.Identity()
        )
        self.act3 = create_act_layer(act, inplace=True)

    def last_norm(self) -> nn.BatchNorm2d:
        """The BatchNorm that ends the residual branch."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chs, H, W) -> (B, 4 width, ceil(H / stride), ceil(W / stride))."""
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.act2(self.bn2(self.conv2(y)))
        y = self.se(self.bn3(self.conv3(y)))
        y = self.drop_path(y)
        y += self.downsample(x)
        return self.act3(y)


class ResNet(Backbone):
    """A stem and four stages of residual blocks (§4.1, Tab. 1).

    Args:
        blocks: block class of each stage: `BasicBlock`, `Bottleneck`, or any callable with their arguments.
        depths: blocks in each stage.
        widths: width of each stage; its output has `blocks[i].expansion` times as many channels.
        strides: stride of the first block of each stage.
        stem_width: channels of the stem.
        stem_stride: 4 for the paper's 7x7 convolution and max pooling; 1 or 2 for a 3x3 convolution of that stride.
        num_classes: classes of the head; 0 for none.
        in_chans: channels of the image.
        global_pool: "avg", "max", "avgmax", "catavgmax", or "" for unpooled features.
        img_size: height and width for which position tables are made, if a block has any; any other size works too.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0.
        zero_init_last: start each block as the identity (Goyal et al. 2017, §5.1).
        act: name of timm's activation.
        se_ratio: width of squeeze-and-excitation gates (Hu et al. 2018) relative to the block's output; 0 for none.
    """

    def __init__(
        self,
        blocks: tuple[Callable[..., BasicBlock | Bottleneck], ...] = (Bottleneck,) * 4,
        depths: tuple[int, ...] = (3, 4, 6, 3),
        *,
        widths: tuple[int, ...] = (64, 128, 256, 512),
        strides: tuple[int, ...] = (1, 2, 2, 2),
        stem_width: int = 64,
        stem_stride: int = 4,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        img_size: int | tuple[int, int] = 224,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        zero_init_last: bool = True,
        act: str = "relu",
        se_ratio: float = 0.0,
    ):
        super().__init__()
        if stem_stride not in (1, 2, 4):
            raise ValueError(f"stem_stride: expected 1, 2 or 4, got {stem_stride!r}")
        kernel, stride = (7, 2) if stem_stride == 4 else (3, stem_stride)
        self.conv1 = nn.Conv2d(in_chans, stem_width, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(stem_width)
        self.act1 = create_act_layer(act, inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem_stride == 4 else nn.Identity()

        self.feature_info = []
        height, width = to_2tuple(img_size)
        size, reduction, in_chs = (-(-height // stem_stride), -(-width // stem_stride)), stem_stride, stem_width
        stages = []
        rates = drop_path_rates(drop_path_rate, depths)
        for make, stage_width, stage_stride, stage_rates in zip(blocks, widths, strides, rates, strict=True):
            stage = nn.Sequential()
            for i, rate in enumerate(stage_rates):
                stride = stage_stride if i == 0 else 1
                block = make(in_chs, stage_width, stride=stride, size=size, drop_path=rate, act=act, se_ratio=se_ratio)
                stage.append(block)
                in_chs = block.last_norm().num_features
                size = (-(-size[0] // stride), -(-size[1] // stride))
            stages.append(stage)
            reduction *= stage_stride
            self.feature_info.append({"num_chs": in_chs, "reduction": reduction, "module": f"layer{len(stages)}"})
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

        self.num_features = self.head_hidden_size = in_chs
        self.num_classes = num_classes
        self.head_drop = nn.Dropout(drop_rate)
        self.global_pool, self.fc = create_classifier(in_chs, num_classes, pool_type=global_pool)
        self._init_weights(zero_init_last)

    def _init_weights(self, zero_init_last: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is None:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if zero_init_last and isinstance(module, BasicBlock | Bottleneck):
                nn.init.zeros_(module.last_norm().weight)

    def forward_stages(self, x: Tensor) -> Iterator[Tensor]:
        """(B, in_chans, H, W) image -> the maps of layer1 to layer4, at strides 4, 8, 16 and 32."""
        x = channels_last_on_cpu(x)
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x = self.maybe_checkpoint(block, x)
            yield x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.fc(x)

    def prune_stages(self, count: int) -> None:
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            stage if i < count else nn.Sequential() for i, stage in enumerate(stages)
        )

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        self.num_classes = num_classes
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=pool)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Layers for layer-wise learning rates: one group per stage if coarse, else one per block."""
        return {"stem": r"^conv1|bn1", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}

    @staticmethod
    def adapt_checkpoint(state_dict: StateDict, model: nn.Module) -> StateDict:
        return names.to_glocal(state_dict)


default_cfgs = generate_default_cfgs(
    {
        "glocal_resnet18.untrained": cfg(pool_size=(7, 7)),
        "glocal_resnet34.untrained": cfg(pool_size=(7, 7)),
        "glocal_resnet50.untrained": cfg(pool_size=(7, 7)),
        "glocal_resnet101.untrained": cfg(pool_size=(7, 7)),
        "glocal_resnet152.untrained": cfg(pool_size=(7, 7)),
    }
)


@register_model
def glocal_resnet18(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-18: 11.7M parameters, 1.8 GMACs at 224 (Tab. 1)."""
    return build(ResNet, "glocal_resnet18", pretrained, kwargs, blocks=(BasicBlock,) * 4, depths=(2, 2, 2, 2))


@register_model
def glocal_resnet34(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-34: 21.8M parameters, 3.6 GMACs at 224 (Tab. 1)."""
    return build(ResNet, "glocal_resnet34", pretrained, kwargs, blocks=(BasicBlock,) * 4, depths=(3, 4, 6, 3))


@register_model
def glocal_resnet50(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-50: 25.6M parameters, 4.1 GMACs at 224 (3.8 in Tab. 1, whose stride is in the first 1x1)."""
    return build(ResNet, "glocal_resnet50", pretrained, kwargs, depths=(3, 4, 6, 3))


@register_model
def glocal_resnet101(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-101: 44.5M parameters, 7.8 GMACs at 224 (7.6 in Tab. 1)."""
    return build(ResNet, "glocal_resnet101", pretrained, kwargs, depths=(3, 4, 23, 3))


@register_model
def glocal_resnet152(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-152: 60.2M parameters, 11.5 GMACs at 224 (11.3 in Tab. 1)."""
    return build(ResNet, "glocal_resnet152", pretrained, kwargs, depths=(3, 8, 36, 3))
