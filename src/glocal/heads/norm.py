"""GroupNorm that works on 1x1 maps (Wu & He 2018, https://arxiv.org/abs/1803.08494)."""

import math

from torch import nn


def num_groups(channels: int) -> int:
    """32 groups as in the paper (§4), fewer where these would have less than four channels each."""
    return max(1, math.gcd(4 * 32, channels) // 4)


def regroup(head: nn.Module) -> None:
    """Merge groups of one channel: on a 1x1 map they are a single value, which torch refuses to normalise.

    torchvision's FCOS and transformers' Deformable DETR always have 32 groups, so with 32 channels a batch of one small
    image would raise an error. Wider heads, including the published ones, are unchanged.
    """
    for module in head.modules():
        if isinstance(module, nn.GroupNorm) and module.num_groups == module.num_channels:
            module.num_groups = num_groups(module.num_channels)
