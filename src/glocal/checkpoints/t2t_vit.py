"""T2T-ViT checkpoints: the authors' release and mmpretrain's -> glocal."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from glocal.checkpoints.unwrap import rename, unwrap

OFFICIAL = (
    (r"^(tokens_to_token\.attention[12])\.w$", r"\1.attend.w"),
    (r"^(tokens_to_token\.attention[12]\.mlp)\.0\.", r"\1.fc1."),
    (r"^(tokens_to_token\.attention[12]\.mlp)\.2\.", r"\1.fc2."),
    (r"\.attn\.se_layer\.fc\.", ".attn.se."),
    (r"\.cheap_operation_?([qkv23])\.", r".cheap_\1."),
    (r"\.mlp\.cheap_([23])\.", r".mlp.cheap\1."),
)
MMPRETRAIN = (
    (r"^backbone\.", ""),
    (r"^encoder\.", "blocks."),
    (r"\.ln([12])\.", r".norm\1."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
    (r"^head\.layers\.head\.", "head."),
)


def to_glocal(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The authors' or mmpretrain's T2T-ViT -> `t2t_vit_*`; a checkpoint of our own passes through."""
    state_dict = unwrap(checkpoint)
    if any(name.startswith("backbone.") for name in state_dict):
        state_dict = rename(state_dict, MMPRETRAIN)
    state_dict = rename(state_dict, OFFICIAL)
    return {name: x.flatten() if re.search(r"\.cheap(_[qkv]|[23])\.", name) else x for name, x in state_dict.items()}
