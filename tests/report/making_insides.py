"""Results of a comparison whose models were looked into, to make pages from."""

from typing import Any

import numpy as np
from PIL import Image

from tests.report.making import picture, results

CURVES = (
    ("low-frequency noise", "noise / std of the image", (0.25, 0.5, 1.0, 2.0), 0.30, 0.12),
    ("high-frequency noise", "noise / std of the image", (0.25, 0.5, 1.0, 2.0), 0.20, 0.12),
    ("occlusion", "fraction of the patches", (0.25, 0.5, 0.75), 0.25, 0.15),
    ("shuffled patches", "patches along a side", (2.0, 4.0, 8.0), 0.40, 0.12),
)
"""Name, unit and levels of a disturbance, what the first model loses as it is shown, and each next one more."""
KINDS = {"resnet": ("convolution",), "botnet": ("convolution", "attention"), "vit": ("attention", "mlp")}
"""Of operations, by how the name of a model begins; others have those of a Conformer."""
ALL = ("convolution", "attention", "mlp", "coupling")


def looked_into(**kwargs: Any) -> tuple[dict[str, Any], dict[str, Image.Image]]:
    """`results` with ``analysis``, and the pictures it names too; every model loses and sees another amount."""
    made, pictures = results(**kwargs)
    finished = {run["model"]: run["id"] for run in reversed(made["runs"]) if run["status"] == "ok"}
    shown = [("none", 0.0), *((name, levels[-2]) for name, _, levels, *_ in CURVES)]
    made["analysis"] = {
        "images": 256, "inside": 32, "seed": 0, "example": "ant/0.png",
        "disturbed": [{"name": name, "level": level, "picture": f"disturbed: {name}"} for name, level in shown],
        "models": [entry(model, finished[model], i) for i, model in enumerate(made["settings"]["models"])
                   if model in finished],
    }  # fmt: skip
    return made, pictures | {f"disturbed: {name}": picture(i) for i, (name, _) in enumerate(shown)}


def entry(model: str, run_id: str, rank: int) -> dict[str, Any]:
    """What was found in a model."""
    kinds = KINDS.get(model.split("_")[0], ALL)
    attends = "attention" in kinds
    clean = 0.9 - 0.01 * rank
    parts = {
        "locality": [
            {"name": f"all {kind}" + " into maps" * (kind == "coupling"), "kind": kind, "operations": 4,
             "changed": 0.2 + 0.6 / (1 + i) - 0.01 * rank, "accuracy": 0.3}
            for i, kind in enumerate(kinds)
        ],
        "receptive_field": [
            {"name": f"blocks.{i}", "depth": (i + 1) / 3, "area": (0.1 + 0.2 * i) * (1 + rank % 3 / 2),
             "field": _field(2 + 2 * i + rank / 2)}
            for i in range(3)
        ],
        "attention": [
            {"name": f"blocks.{i}.attn", "distance": 9.0 + i + rank, "everywhere": 16.7} for i in range(4)
        ] if attends else [],
        "fourier": [
            {"name": f"blocks.{i} {kind}", "kind": kind, "stream": "tokens" if kind == "coupling" else "map",
             "high": -2.0 - 0.1 * i - 0.2 * k - 0.1 * rank,
             "change": {"convolution": 0.3, "attention": -0.1, "mlp": -0.03}.get(kind, 0.0) + 0.02 * i}
            for i in range(4) for k, kind in enumerate(kinds)
        ],
        "robustness": {
            "images": 256, "labelled": True, "clean": clean, "conflicts": 200, "shape": 0.4, "texture": 0.1,
            "curves": [
                {"name": name, "unit": unit, "levels": list(levels),
                 "score": [max(0.1, clean - (lost + more * rank) * (i + 1) / (len(levels) - 1))
                           for i in range(len(levels))]}
                for name, unit, levels, lost, more in CURVES
            ],
        },
    }  # fmt: skip
    return {"model": model, "run": run_id, "seconds": 3.0 + rank, "parts": parts, "without": {}, "failed": {}}


def _field(width: float) -> list[list[float]]:
    y, x = np.mgrid[-8:8:16j, -8:8:16j]
    return np.exp(-(x**2 + y**2) / (2 * width**2)).round(3).tolist()
