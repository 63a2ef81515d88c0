"""Parameters and MACs of assembled detectors beside the published ones: writes docs/results/detectors.{json,md}.

    OMP_NUM_THREADS=1 python benchmarks/detectors.py

What is counted is what mmdetection's and mmsegmentation's `get_flops` run, with which the papers counted: the dense
part, the box heads on 1000 proposals, the mask head on 100 (its first version's `forward_dummy`). Everything runs on
the meta device: no weights, no values.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import glocal  # noqa: F401  (registers the models)
from glocal.bench import count_macs, count_params
from glocal.files import atomic_write_text
from glocal.heads import create_detector, create_segmenter
from glocal.layers import FCUDown

RESULT = Path(__file__).parents[1] / "docs/results/detectors"

CONFORMER = "pengzhiliang/Conformer, mmdetection/README.md (images of 1344x800 there)"
CAT = "linhezheng19/CAT, README.md, before its links were taken off"
CROSSFORMER = "CrossFormer, Wang et al. 2021, tables of its README (mmdetection 2.8, mmsegmentation 0.12)"


@dataclass(frozen=True)
class Row:
    """A published figure, and how it was counted.

    Attributes:
        size: (H, W) in pixels of the one image.
        params_m: published, in millions; 0 where none is.
        gmacs: published.
        attention: whether the products of attention are in the published figure.
        note: what else differs.
    """

    kind: str
    backbone: str
    size: tuple[int, int]
    params_m: float
    gmacs: float
    source: str
    attention: bool = False
    note: str = ""


DETECTION, ADE20K = (800, 1280), (512, 2048)
AUXILIARY = "published with an auxiliary training head, and ResNet with a stem of three convolutions"
ROWS = (
    Row("mask_rcnn", "conformer_small_patch32", (800, 1344), 58.1, 341.4, CONFORMER, True),
    Row("faster_rcnn", "conformer_small_patch32", (800, 1344), 55.4, 288.4, CONFORMER, True),
    Row("mask_rcnn", "cat_small", DETECTION, 57, 295, CAT),
    Row("mask_rcnn", "cat_base", DETECTION, 71, 356, CAT),
    Row("fcos", "cat_small", DETECTION, 45, 245, CAT),
    Row("fcos", "cat_base", DETECTION, 59, 303, CAT),
    Row("atss", "cat_small", DETECTION, 45, 243, CAT),
    Row("atss", "cat_base", DETECTION, 59, 303, CAT),
    Row("retinanet", "cat_small", DETECTION, 47, 276, CAT),
    Row("retinanet", "cat_base", DETECTION, 62, 337, CAT),
    Row("cascade_rcnn", "cat_small", DETECTION, 82, 270, CAT),
    Row("cascade_rcnn", "cat_base", DETECTION, 96, 330, CAT),
    Row("semantic_fpn", "cat_small", ADE20K, 41, 214, CAT),
    Row("semantic_fpn", "cat_base", ADE20K, 55, 276, CAT),
    Row("mask_rcnn", "glocal_resnet101", DETECTION, 63.2, 336, CROSSFORMER),
    Row("retinanet", "glocal_resnet101", DETECTION, 56.7, 315, CROSSFORMER),
    Row("mask_rcnn", "swin_tiny_patch4_window7_224", DETECTION, 47.8, 264, CROSSFORMER),
    Row("retinanet", "swin_tiny_patch4_window7_224", DETECTION, 38.5, 245, CROSSFORMER),
    Row("upernet", "glocal_resnet101", ADE20K, 86, 1029, CROSSFORMER, note=AUXILIARY),
    Row("upernet", "swin_tiny_patch4_window7_224", ADE20K, 60, 945, CROSSFORMER, note=AUXILIARY),
)


class Counted(nn.Module):
    """The part of a detector whose cost does not depend on what it sees, on 1000 proposals and 100 masks."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """(1, 3, H, W) -> the finest map; the heads' outputs are dropped."""
        levels = list(self.network.backbone(x).values())
        if not hasattr(self.network, "rpn"):
            self.network.head(levels)
            return levels[0]
        self.network.rpn.head(levels)
        heads, channels = self.network.roi_heads, levels[0].shape[1]
        stages = getattr(heads, "box_heads", [heads.box_head])
        for stage, predictor in zip(stages, getattr(heads, "box_predictors", [heads.box_predictor]), strict=True):
            predictor(stage(x.new_zeros(1000, channels, 7, 7)))
        if heads.has_mask():
            heads.mask_predictor(heads.mask_head(x.new_zeros(100, channels, 14, 14)))
        return levels[0]


def assemble(row: Row) -> nn.Module:
    """The whole model, without storage."""
    size = {"img_size": row.size} if row.backbone.startswith("swin") else {}  # timm's Swin runs at one size
    with torch.device("meta"):
        if row.kind in ("semantic_fpn", "upernet"):
            return create_segmenter(row.kind, row.backbone, 150, backbone_kwargs=size)
        return create_detector(row.kind, row.backbone, 80, backbone_kwargs=size).network


def attention_macs(model: nn.Module, size: tuple[int, int]) -> int:
    """MACs of the products of attention, QK^T and AV: the only batched matrix products in these models."""
    model.eval()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, *size, device="meta"))
    return counter.get_flop_counts()["Global"].get(torch.ops.aten.bmm, 0) // 2


def project_before_pooling(model: nn.Module) -> bool:
    """Conformer's coupling in the order of the release, which costs more and gives the same; whether there was any."""
    units = [module for module in model.modules() if isinstance(module, FCUDown)]
    for unit in units:
        unit.average, unit.maximum = unit.maximum, unit.average
    return bool(units)


def measure(row: Row) -> dict[str, object]:
    """Our figures for a row."""
    network = assemble(row)
    model = network if row.kind in ("semantic_fpn", "upernet") else Counted(network)
    macs = count_macs(model, row.size)
    note = row.note
    as_published = macs if row.attention else macs - attention_macs(model, row.size)
    if project_before_pooling(model):
        as_published += count_macs(model, row.size) - macs
        note = "the release projects maps to tokens before pooling; here after, with the same result"
    if not row.attention:
        left_out = "published without attention products" * (macs - as_published > 1e-3 * macs)
        note = "; ".join(filter(None, [left_out, note]))
    return asdict(row) | {
        "our_params_m": round(count_params(network) / 1e6, 2),
        "our_gmacs": round(macs / 1e9, 1),
        "our_gmacs_as_published": round(as_published / 1e9, 1),
        "note": note,
    }


def table(rows: list[dict[str, object]]) -> str:
    """The rows as a page."""
    lines = [
        "# Cost of detectors and segmenters",
        "",
        "By `python benchmarks/detectors.py` on the meta device: parameters and MACs of the whole",
        "models, box heads on 1000 proposals and mask heads on 100, as in mmdetection's `get_flops`.",
        "*ours* includes the attention products; *as published* counts as the published number does, see the notes.",
        "80 classes for detection, 150 for segmentation.",
        "",
        "| head | backbone | image | params M, published | ours | GMACs, published | ours | as published | difference "
        "| notes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        apart = row["our_gmacs_as_published"] / row["gmacs"] - 1
        height, width = row["size"]
        lines.append(
            f"| {row['kind']} | {row['backbone']} | {height}x{width} | {row['params_m']} | {row['our_params_m']} | "
            f"{row['gmacs']} | {row['our_gmacs']} | {row['our_gmacs_as_published']} | {apart:+.1%} | {row['note']} |"
        )
    lines += ["", "Sources: " + "; ".join(dict.fromkeys(str(row["source"]) for row in rows)) + "."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Count all and write both files."""
    rows = []
    for row in ROWS:
        rows.append(measure(row))
        print(json.dumps(rows[-1]), flush=True)
    atomic_write_text(RESULT.with_suffix(".json"), json.dumps(rows, indent=1) + "\n")
    atomic_write_text(RESULT.with_suffix(".md"), table(rows))


if __name__ == "__main__":
    main()
