"""Layers of the families, built on torch alone: importing timm registers the models, which import this package."""

from glocal.layers.attention import Attend, ConvAttention, MHSA2d, NonLocal2d, SelfAttention
from glocal.layers.coupling import FCUDown, FCUUp
from glocal.layers.linear import Linear
from glocal.layers.mlp import Mlp, QuickGELU
from glocal.layers.performer import RandomFeatureAttention
from glocal.layers.position import (
    AbsolutePosition2d,
    NoPosition2d,
    RelativePosition2d,
    resample_map,
    resample_table,
    sincos_position_2d,
    sinusoid,
)
from glocal.layers.tokens import PatchEmbed, map_to_tokens, tokens_to_map
from glocal.layers.tokens_to_token import ConvolutionTokens, TokensToToken
from glocal.layers.window import CrossPatchAttention, WindowAttention, from_windows, full_windows, to_windows

__all__ = [
    "AbsolutePosition2d",
    "Attend",
    "ConvAttention",
    "ConvolutionTokens",
    "CrossPatchAttention",
    "FCUDown",
    "FCUUp",
    "Linear",
    "MHSA2d",
    "Mlp",
    "NoPosition2d",
    "NonLocal2d",
    "PatchEmbed",
    "QuickGELU",
    "RandomFeatureAttention",
    "RelativePosition2d",
    "SelfAttention",
    "TokensToToken",
    "WindowAttention",
    "from_windows",
    "full_windows",
    "map_to_tokens",
    "resample_map",
    "resample_table",
    "sincos_position_2d",
    "sinusoid",
    "to_windows",
    "tokens_to_map",
]
