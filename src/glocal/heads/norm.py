"""GroupNorm that a map of one pixel has statistics for (Wu & He 2018, https://arxiv.org/abs/1803.08494)."""

import math

from torch import nn


def num_groups(channels: int) -> int:
    """32 groups as in the paper (§4), fewer where these would have less than four channels each."""
    return max(1, math.gcd(4 * 32, channels) // 4)


def regroup(head: nn.Module) -> None:
    """Put together groups of one channel: on a map of 1x1 they are one number, which torch refuses to normalise.

    torchvision's FCOS and transformers' Deformable DETR have 32 groups whatever their width, so with 32 channels a
    small image alone in its batch would end training and evaluation. Wider ones, the published among them, stay as
    they are.
    """
    for module in head.modules():
        if isinstance(module, nn.GroupNorm) and module.num_groups == module.num_channels:
            module.num_groups = num_groups(module.num_channels)
