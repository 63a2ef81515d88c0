"""ViT checkpoints: timm's (and DeiT's) names are ours; torchvision's are renamed."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from glocal.checkpoints.unwrap import rename, unwrap

# torchvision.models.VisionTransformer -> glocal
TORCHVISION = (
    (r"^class_token$", "cls_token"),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
    (r"^encoder\.ln\.", "norm."),
    (r"^heads\.head\.", "head."),
)


def to_glocal(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """timm's, DeiT's or torchvision's ViT -> `glocal_vit_*`; a checkpoint of our own passes through."""
    state_dict = unwrap(checkpoint)
    if "conv_proj.weight" not in state_dict:
        return state_dict
    return rename(state_dict, TORCHVISION)
