"""ResNet: Deep Residual Learning for Image Recognition, He et al. 2016. https://arxiv.org/abs/1512.03385

Convolution, BatchNorm, ReLU, one after another; the stride of a bottleneck in its 3x3 convolution, as commonly done.
"""

from typing import Any

from torch import Tensor, nn

VARIANTS: dict[str, dict[str, Any]] = {
    "glocal_resnet50": {"depths": (3, 4, 6, 3)},
    "resnet_micro": {
        "depths": (1, 1, 2, 3), "widths": (12, 24, 48, 96), "strides": (1, 2, 2, 1), "stem_width": 24, "stem_stride": 2,
    },
}  # fmt: skip


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution around a shortcut (§4.1, Fig. 5 right)."""

    def __init__(self, in_chs: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_chs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2: nn.Module = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential()
        if stride > 1 or in_chs != 4 * width:
            self.downsample.append(nn.Conv2d(in_chs, 4 * width, 1, stride=stride, bias=False))
            self.downsample.append(nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chs, H, W) -> (B, 4 width, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += self.downsample(x)
        return self.relu(y)


class ResNet(nn.Module):
    """Stem, four stages, average pooling, classifier (§4.1, Tab. 1)."""

    def __init__(
        self,
        depths: tuple[int, ...],
        *,
        widths: tuple[int, ...] = (64, 128, 256, 512),
        strides: tuple[int, ...] = (1, 2, 2, 2),
        stem_width: int = 64,
        stem_stride: int = 4,
        num_classes: int = 1000,
    ):
        super().__init__()
        kernel = 7 if stem_stride == 4 else 3
        self.conv1 = nn.Conv2d(3, stem_width, kernel, stride=2, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(stem_width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem_stride == 4 else nn.Identity()
        stages, in_chs = [], stem_width
        for depth, width, stride in zip(depths, widths, strides, strict=True):
            stages.append(nn.Sequential())
            for i in range(depth):
                stages[-1].append(Bottleneck(in_chs, width, 1 if i else stride))
                in_chs = 4 * width
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(in_chs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, num_classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def build(name: str, *, image_size: int | None = None, num_classes: int = 1000) -> ResNet:
    """One of `VARIANTS`; there are no tables, so the image size is unused."""
    return ResNet(**VARIANTS[name], num_classes=num_classes)
