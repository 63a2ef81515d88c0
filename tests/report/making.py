"""Results as a comparison writes them, to make pages from."""

from typing import Any

import numpy as np
from PIL import Image

NAMES = ("resnet_micro", "botnet_micro", "vit_micro")
IMAGES_OF_A_CLASS = 200


def results(
    models: tuple[str, ...] = NAMES,
    classes: tuple[str, ...] = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen"),
    seeds: int = 3,
    fractions: tuple[float, ...] = (1.0,),
    failed: tuple[str, ...] = (),
) -> tuple[dict[str, Any], dict[str, Image.Image]]:
    """A whole results.json, and the pictures its mistakes name.

    Models stand in the order of their accuracy; the first two are tied, the second is cheaper, the last is the fastest.
    """
    rng = np.random.default_rng(0)
    runs, summary = [], []
    for fraction in fractions:
        finished = [model for model in models if model not in failed]
        for rank, model in enumerate(models):
            costs = _costs(rank, len(models))
            group = [
                _run(model, rank, seed, fraction, classes, rng) if model in finished else _failed(model, seed, fraction)
                for seed in range(seeds)
            ]
            runs += [run | costs for run in group]
            if model in finished:
                best = next((row["top1_mean"] for row in summary if row["fraction"] == fraction), None)
                summary.append(_row(model, finished.index(model), fraction, group, costs, best))
    by_model = {row["model"]: row for row in summary if row["fraction"] == max(fractions)}
    made = {
        "schema": "glocal.compare/1",
        "command": f"glocal compare photos --models {','.join(models)} --seeds {seeds}",
        "created": "2026-11-21T08:00:00+00:00",
        "glocal": "0.1.0",
        "settings": {
            "models": list(models), "budget": "5ep", "seeds": list(range(seeds)), "mode": "scratch", "image_size": 32,
            "fractions": list(fractions), "device": "cpu", "recipe": {"lr": 0.002, "flip": True, "augment": "none"},
            "confidence": 0.95, "jobs": 2,
        },
        "data": {
            "name": "photos", "classes": list(classes), "train": 1000 * len(classes),
            "val": IMAGES_OF_A_CLASS * len(classes), "train_per_class": [1000] * len(classes),
            "val_per_class": [IMAGES_OF_A_CLASS] * len(classes),
            "split": "20% of each class held out for val, split seed 0", "fingerprint": "ab" * 32,
            "skipped": [{"path": "ant/bad.jpg", "reason": "truncated"}], "warnings": ["1 link was not followed"],
        },
        "runs": runs,
        "summary": summary,
        "verdict": _verdict(by_model, runs, seeds),
        "environment": {"python": "3.12.1", "torch": "2.15.0", "cpu": "AMD EPYC", "cores": 2, "memory_gib": 23.5,
                        "device": "cpu", "gpu": None},
    }  # fmt: skip
    names = sorted({mistake["picture"] for run in runs for mistake in run["mistakes"]})
    return made, {name: picture(i) for i, name in enumerate(names)}


def _costs(rank: int, num_models: int) -> dict[str, Any]:
    macs = int(17_134_592 * 0.72**rank)
    return {
        "params": int(860_000 * 0.8**rank), "macs": macs, "latency_ms_b1": 0.9 + 0.35 * (num_models - 1 - rank),
        "images_per_s_b32": 3100.0 + 420 * rank, "peak_memory_mib": 210.0 - 9 * rank,
    }  # fmt: skip


def _run(
    model: str, rank: int, seed: int, fraction: float, classes: tuple[str, ...], rng: np.random.Generator
) -> dict[str, Any]:
    level = (0.9 - 0.025 * max(0, rank - 1) - 0.006 * rank) * (1 + 0.09 * np.log10(fraction)) - 0.003 * seed
    confusion = np.stack([_answers(label, level, len(classes), rng) for label in range(len(classes))])
    top1 = float(confusion.trace() / confusion.sum())
    return {
        "id": f"{model}-f{fraction:g}-s{seed}", "model": model, "seed": seed, "fraction": fraction, "status": "ok",
        "error": None, "top1": top1, "top5": 0.99 - 0.002 * rank if len(classes) > 5 else None,
        "ece": 0.05 + 0.004 * rank, "nll": 0.6, "confusion": confusion.tolist(),
        "per_class": (confusion.diagonal() / confusion.sum(1)).tolist(),
        "train_images_per_s": 1500.0 + 90 * rank,
        "budget": {"asked": "5ep", "epochs": 5.0, "steps": 785, "seconds": 60.0 - 3 * rank, "flop": 5e12,
                   "seconds_to_budget": 62.0 - 3 * rank},
        "curve": [
            {"epoch": float(e), "step": 157 * e, "seconds": (12.0 - 0.6 * rank) * e, "train_loss": 2.0 / e,
             "val_loss": 1.5 / e, "val_score": top1 * (1 - 0.9 ** (1 + rank / 9) * np.exp(-0.9 * e) * (1 + 0.1 * seed))}
            for e in range(1, 6)
        ],
        "mistakes": [
            {"path": f"{classes[i % len(classes)]}/{i}.png", "picture": f"{classes[i % len(classes)]}/{i}.png",
             "true": i % len(classes), "predicted": (i + 1 + rank) % len(classes), "confidence": 0.99 - 0.01 * i}
            for i in range(12)
        ],
        "weights": f"runs/{model}-f{fraction:g}-s{seed}/model.safetensors",
    }  # fmt: skip


def _answers(label: int, level: float, num_classes: int, rng: np.random.Generator) -> np.ndarray:
    """What was said for the images of a class: classes differ in how hard they are, and neighbours are alike."""
    right = np.clip(level + 0.07 * np.sin(2.3 * label), 0.05, 0.99)
    distance = np.abs(np.arange(num_classes) - label)
    wrong = np.where(distance, np.exp(-0.8 * distance) + 0.02, 0)
    num_right = round(IMAGES_OF_A_CLASS * right)
    answers = rng.multinomial(IMAGES_OF_A_CLASS - num_right, wrong / wrong.sum())
    answers[label] = num_right
    return answers


def _failed(model: str, seed: int, fraction: float) -> dict[str, Any]:
    nothing = dict.fromkeys(("top1", "top5", "ece", "nll", "train_images_per_s", "budget", "weights"))
    return {
        "id": f"{model}-f{fraction:g}-s{seed}", "model": model, "seed": seed, "fraction": fraction, "status": "failed",
        "error": "the loss became NaN at step 12: try a smaller lr", "per_class": [], "confusion": [], "curve": [],
        "mistakes": [], **nothing,
    }  # fmt: skip


def _row(
    model: str, rank: int, fraction: float, group: list[dict[str, Any]], costs: dict[str, Any], best: float | None
) -> dict[str, Any]:
    mean = float(np.mean([run["top1"] for run in group]))
    behind = 0.0 if best is None else mean - best
    return {
        "model": model, "fraction": fraction, "seeds": len(group), "top1_mean": mean,
        "top1_ci": [mean - 0.012, mean + 0.012],
        "ci_method": f"t-interval over {len(group)} seeds" if len(group) > 1 else "bootstrap over images, one seed",
        "top5_mean": group[0]["top5"], "ece_mean": group[0]["ece"], **costs,
        "train_images_per_s": group[0]["train_images_per_s"],
        "seconds_to_budget": group[0]["budget"]["seconds_to_budget"], "difference_to_best": behind,
        "difference_ci": [behind - 0.011, behind + 0.012] if rank else [0.0, 0.0], "tied_with_best": rank < 2,
    }  # fmt: skip


def _verdict(rows: dict[str, dict[str, Any]], runs: list[dict[str, Any]], seeds: int) -> dict[str, Any]:
    if not rows:
        return {"most_accurate": None, "cheapest_tied": None, "fastest": None, "caveats": [],
                "sentence": "No run has finished, so there is nothing to compare yet."}  # fmt: skip
    names = list(rows)
    best, cheapest, fastest = names[0], names[:2][-1], names[-1]
    return {
        "most_accurate": best, "cheapest_tied": cheapest, "fastest": fastest,
        "sentence": f"Take {cheapest}: its {100 * rows[cheapest]['top1_mean']:.1f} % top-1 is within the noise of "
        f"{best}, the most accurate. If speed at batch 1 decides, {fastest} is the fastest with 0.9 ms per image.",
        "caveats": ["Seeds were not varied."] * (seeds == 1)
        + [f"{run['id']} failed: {run['error']}" for run in runs if run["status"] == "failed"],
    }  # fmt: skip


def picture(number: int) -> Image.Image:
    """A 28-pixel picture with a shape of its own."""
    y, x = np.mgrid[-1:1:28j, -1:1:28j]
    shape = np.abs(x) ** (1 + number % 4) + np.abs(y) ** (1 + number // 4 % 3) < 0.6
    colour = np.array([60 + 37 * number % 190, 90 + 61 * number % 160, 120 + 23 * number % 130])
    return Image.fromarray((shape[..., None] * colour).astype(np.uint8))


OTHERS = {"map": ("map50", "map75", "mask_map"), "miou": ("pixel_accuracy",)}
NAMED = {"map": ("detection", "fcos", "box AP"), "miou": ("segmentation", "semantic_fpn", "mIoU")}


def of_task(metric: str, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Image.Image]]:
    """The same as a comparison of detectors (``map``) or segmenters (``miou``) has it, and the pictures it names."""
    made, _ = results(**kwargs)
    task, head, name = NAMED[metric]
    made["settings"] |= {"task": task, "head": {"head": head, "options": {"channels": 64}, "frozen_norm": True,
                                                "frozen_stages": 1, "preset": ""}}  # fmt: skip
    made["verdict"]["sentence"] = made["verdict"]["sentence"].replace("top-1", name)
    for run in made["runs"]:
        for key in ("top5", "ece", "nll", "mistakes"):
            del run[key]
        run[metric] = run.pop("top1")
        run["images_per_s_b8"] = run.pop("images_per_s_b32")
        if task == "detection":
            del run["confusion"]
            run |= {"threshold": 0.31, "small": 0.1, "medium": None, "large": None, "recall": 0.6}
        run |= dict.fromkeys(OTHERS[metric], run[metric]) | ({"mask_map": None} if task == "detection" else {})
    for row in made["summary"]:
        for key in ("mean", "ci"):
            row[f"{metric}_{key}"] = row.pop(f"top1_{key}")
        del row["top5_mean"], row["ece_mean"]
        row["images_per_s_b8"] = row.pop("images_per_s_b32")
        row |= {f"{key}_mean": row[f"{metric}_mean"] for key in OTHERS[metric]} | {"mask_map_mean": None}
    shown = {run["model"]: run["id"] for run in reversed(made["runs"]) if run["status"] == "ok"}
    made["metric"] = metric
    made["examples"] = [
        {"why": why, "path": path, "scores": {model: None if i == 1 else 0.2 for i, model in enumerate(shown)},
         "truth": f"truth/{path}", "predictions": {model: f"{run_id}/{path}" for model, run_id in shown.items()}}
        for why, path in (("differ", "<b>a.jpg"), ("differ", "b.jpg"), ("hard", "c.jpg"), ("typical", "d.jpg"))
    ]  # fmt: skip
    keys = [key for one in made["examples"] for key in (one["truth"], *one["predictions"].values())]
    return made, {key: picture(i).resize((256, 192)) for i, key in enumerate(keys)}
