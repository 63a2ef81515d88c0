"""Parts without a family, built on torch alone: importing timm registers the models, which import this room."""

from glocal.layers.attention import Attend, MHSA2d, NonLocal2d, SelfAttention
from glocal.layers.position import (
    AbsolutePosition2d,
    NoPosition2d,
    RelativePosition2d,
    resample_table,
    sincos_position_2d,
)
from glocal.layers.tokens import PatchEmbed, map_to_tokens, tokens_to_map

__all__ = [
    "AbsolutePosition2d",
    "Attend",
    "MHSA2d",
    "NoPosition2d",
    "NonLocal2d",
    "PatchEmbed",
    "RelativePosition2d",
    "SelfAttention",
    "map_to_tokens",
    "resample_table",
    "sincos_position_2d",
    "tokens_to_map",
]
