"""ViT checkpoints: timm's (and DeiT's) names are ours; torchvision's and Hugging Face's are renamed."""

from collections.abc import Mapping
from typing import Any

import torch
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


# transformers.ViTForImageClassification -> glocal: files on the hub, then transformers 5
HUGGING_FACE = (
    (r"^vit\.embeddings\.cls_token$", "cls_token"),
    (r"^vit\.embeddings\.position_embeddings$", "pos_embed"),
    (r"^vit\.embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^vit\.(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(?:attention\.)?(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.(?:q_proj)\.", ".attn.query."),
    (r"\.attention\.(?:k_proj)\.", ".attn.key."),
    (r"\.attention\.(?:v_proj)\.", ".attn.value."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"^vit\.layernorm\.", "norm."),
    (r"^classifier\.", "head."),
)


def to_glocal(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """timm's, DeiT's, torchvision's or Hugging Face's ViT -> `glocal_vit_*`; one of our own passes through."""
    state_dict = unwrap(checkpoint)
    if "conv_proj.weight" in state_dict:
        return rename(state_dict, TORCHVISION)
    if any(name.startswith("vit.embeddings.") for name in state_dict):
        return _join_qkv(rename(state_dict, HUGGING_FACE))
    return state_dict


def _join_qkv(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join separate q, k and v projections into one, in this order."""
    joined = {}
    for name, tensor in state_dict.items():
        if ".attn.query." in name:
            parts = [tensor, *(state_dict.get(name.replace("query", part)) for part in ("key", "value"))]
            if all(part is not None for part in parts):
                joined[name.replace("query", "qkv")] = torch.cat([part for part in parts if part is not None])
        elif ".attn.key." not in name and ".attn.value." not in name:
            joined[name] = tensor
    return joined
