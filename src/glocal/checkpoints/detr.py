"""DETR checkpoints: the authors' release and transformers' copies -> a detector on a ResNet with frozen BatchNorm.

The release (github.com/facebookresearch/detr) uses torchvision's ResNet names after ``backbone.0.body.``; transformers
uses timm's names, which are the same, or those of its own ResNet.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from glocal.checkpoints import resnet
from glocal.checkpoints.unwrap import rename, unwrap

_BODY = r"^backbone\.0\.body\.|^(model\.)?backbone\.(conv_encoder\.)?model\."
_DETECTOR = "network.model."
_BACKBONE = f"{_DETECTOR}model.backbone.model.pyramid.backbone.model."

# facebookresearch/detr -> transformers
RELEASE = (
    (r"^input_proj\.", "model.input_projection."),
    (r"^query_embed\.", "model.query_position_embeddings."),
    (r"^class_embed\.", "class_labels_classifier."),
    (r"^bbox_embed\.", "bbox_predictor."),
    (r"^transformer\.decoder\.norm\.", "model.decoder.layernorm."),
    (r"^transformer\.", "model."),
    (r"\.multihead_attn\.", ".encoder_attn."),
    (r"\.linear([12])\.", r".fc\1."),
    (r"(encoder\.layers\.\d+)\.norm2\.", r"\1.final_layer_norm."),
    (r"\.norm1\.", ".self_attn_layer_norm."),
    (r"\.norm2\.", ".encoder_attn_layer_norm."),
    (r"\.norm3\.", ".final_layer_norm."),
)

# transformers before version 5 (the published copies) -> since
BEFORE_5 = ((r"\.out_proj\.", ".o_proj."), (r"(layers\.\d+)\.(fc[12])\.", r"\1.mlp.\2."))


def backbone_to_glocal(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The ResNet of a DETR checkpoint in the names of `glocal_resnet*`, without a classifier."""
    body = {re.sub(_BODY, "", name): tensor for name, tensor in unwrap(checkpoint).items() if re.match(_BODY, name)}
    if any(name.startswith("embedder.") for name in body):
        body = resnet.to_glocal({f"resnet.{name}": tensor for name, tensor in body.items()})
    # frozen BatchNorms have no batch counter
    return {name: tensor for name, tensor in body.items() if not name.endswith("num_batches_tracked")}


def to_glocal(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """A DETR checkpoint -> ``create_detector("detr", "glocal_resnet50", 91, norm="frozen")``, or with ResNet-101.

    The 91 classes are COCO's category numbers, 0 and some others unused.
    """
    heads = {name: tensor for name, tensor in unwrap(checkpoint).items() if not re.match(_BODY, name)}
    split = {}
    for name, tensor in heads.items():
        if ".in_proj_" in name:  # q, k and v as one matrix
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                split[name.replace(".in_proj_", f".{part}_proj.")] = piece
        else:
            split[name] = tensor
    renamed = rename(split, (*RELEASE, *BEFORE_5) if "query_embed.weight" in heads else BEFORE_5)
    return {
        **{_DETECTOR + name: tensor for name, tensor in renamed.items()},
        **{_BACKBONE + name: tensor for name, tensor in backbone_to_glocal(checkpoint).items()},
    }
