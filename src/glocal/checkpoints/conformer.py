"""Conformer checkpoints: the authors' (classification and dense) and mmpretrain's -> glocal."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from glocal.checkpoints.unwrap import rename, unwrap

MMPRETRAIN = (
    (r"^(?:backbone|head)\.", ""),
    (r"(trans_1|trans_block)\.ln([12])\.", r"\1.norm\2."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
)
OFFICIAL = (
    (r"\.residual_conv\.", ".residual.0."),
    (r"\.residual_bn\.", ".residual.1."),
    (r"^trans_norm\.", "norm."),
    (r"^(conv|trans)_cls_head\.", r"\1_head."),
)


def to_glocal(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The authors' or mmpretrain's Conformer -> `conformer_*`; a checkpoint of our own passes through.

    Their blocks count from 2 in attributes, ours from 0 in a list.
    """
    state_dict = rename(rename(unwrap(checkpoint), MMPRETRAIN), OFFICIAL)
    return {
        re.sub(r"^conv_trans_(\d+)\.", lambda match: f"conv_trans.{int(match[1]) - 2}.", name): tensor
        for name, tensor in state_dict.items()
    }
