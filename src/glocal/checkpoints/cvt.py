"""CvT checkpoints: the authors' release and Hugging Face's -> glocal."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from glocal.checkpoints.unwrap import rename, unwrap

OFFICIAL = ((r"^stage(\d)\.", r"stages.\1."),)
HUGGING_FACE = (
    (r"^cvt\.encoder\.", ""),
    (r"\.embedding\.convolution_embeddings\.projection\.", ".patch_embed.proj."),
    (r"\.embedding\.convolution_embeddings\.normalization\.", ".patch_embed.norm."),
    (r"^(stages\.\d+)\.layers\.", r"\1.blocks."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.attention\.convolution_projection_(q|k|v)\w+\.convolution_projection\.", r".attn.conv_proj_\1."),
    (r"(\.conv_proj_[qkv])\.convolution\.", r"\1.conv."),
    (r"(\.conv_proj_[qkv])\.normalization\.", r"\1.bn."),
    (r"\.attention\.attention\.projection_(q|k|v)\w+\.", r".attn.proj_\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
)


def to_glocal(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The authors' or Hugging Face's CvT -> `cvt_*`; a checkpoint of our own passes through."""
    state_dict = unwrap(checkpoint)
    if any(name.startswith("cvt.") for name in state_dict):
        return rename(state_dict, HUGGING_FACE)
    return rename(state_dict, OFFICIAL)
