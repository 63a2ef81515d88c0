"""CAT checkpoints: the authors' classifiers and dense backbones -> glocal."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from glocal.checkpoints.unwrap import rename, unwrap

OFFICIAL = (
    (r"^backbone\.", ""),
    (r"^ape$", "pos_embed"),
    (r"^layers\.", "stages."),
    (r"^(stages\.\d+)\.pre_ipsa_blocks\.(\d+)\.", r"\1.blocks.\2.ipsa1."),
    (r"^(stages\.\d+)\.cpsa_blocks\.(\d+)\.", r"\1.blocks.\2.cpsa."),
    (r"^(stages\.\d+)\.post_ipsa_blocks\.(\d+)\.", r"\1.blocks.\2.ipsa2."),
    (r"\.relative_position_bias_table$", ".position.table"),
)


def to_glocal(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The authors' CAT -> `cat_*`; a checkpoint of our own passes through.

    The patch projection ends a stage there and begins the next one here; the relative position index is recomputed;
    position embeddings are a map; the last of the dense release's output norms is `norm`.
    """
    state_dict = unwrap(checkpoint)
    if not any(name.startswith(("layers.", "backbone.layers.")) for name in state_dict):
        return state_dict
    state_dict = rename(state_dict, OFFICIAL)
    last = max(int(match[1]) for name in state_dict if (match := re.match(r"stages\.(\d+)\.", name)))
    converted = {}
    for name, tensor in state_dict.items():
        if name.endswith(".relative_position_index"):
            continue
        if match := re.match(r"stages\.(\d+)(\.downsample\..+)", name):
            name = f"stages.{int(match[1]) + 1}{match[2]}"
        if match := re.match(r"norm(\d+)\.(.+)", name):
            name = f"norm.{match[2]}" if int(match[1]) == last else f"output_norms.{match[1]}.{match[2]}"
        if name == "pos_embed" and tensor.ndim == 3:  # (1, hw, C) in the classifiers
            side = round(tensor.shape[1] ** 0.5)
            tensor = tensor.transpose(1, 2).reshape(1, -1, side, side)
        converted[name] = tensor
    return converted
