"""Detection and segmentation on the generated set, at full length: what is reached, how soon, and what transfer gives.

    OMP_NUM_THREADS=1 python benchmarks/tasks.py [--runs runs/tasks] [--only mask_rcnn,rt_detr,...] [--page]

Trains `resnet_micro` as a classifier on fashion-mini, and then heads on it: from the classifier's weights and from
random ones. Each run is a command of `glocal`, printed and kept; stopped, the same call goes on. Writes
docs/results/tasks.json after each run, tasks.md and a figure from it, and a picture of what was found beside the truth.
"""

import argparse
import csv
import io
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from PIL import Image

from glocal.bench import describe_environment
from glocal.data.pasted import items_on_photos
from glocal.files import atomic_write_text
from glocal.models.io import load_model
from glocal.report.figures import STYLE, Looks, stand_alone
from glocal.tasks.drawing import draw_objects

OUT = Path(__file__).parents[1] / "docs" / "results" / "tasks.json"
FIGURE = OUT.parents[1] / "figures" / "tasks-curves.svg"
PICTURE = FIGURE.with_name("tasks-predictions.jpg")
SHOWN_IMAGES, SCALE = 6, 2
MODEL = "resnet_micro"
CLASSIFIER = "classifier"
DATA = "items-on-photos"
LIMIT = 40
"""Minutes of one core: 20 of two."""

RUNS: dict[str, list[str]] = {
    CLASSIFIER: ["train", "fashion-mini"],
    "mask_rcnn, transfer": ["detect", "train", DATA, "--detector", "mask_rcnn", "--weights", CLASSIFIER],
    "semantic_fpn, transfer": ["segment", "train", DATA, "--segmenter", "semantic_fpn", "--weights", CLASSIFIER],
    "rt_detr, transfer": ["detect", "train", DATA, "--detector", "rt_detr", "--weights", CLASSIFIER],
    "mask_rcnn, scratch": ["detect", "train", DATA, "--detector", "mask_rcnn"],
    "semantic_fpn, scratch": ["segment", "train", DATA, "--segmenter", "semantic_fpn"],
}
ASKED = {
    "mask_rcnn, transfer": {"val_map50": 0.70, "val_mask_map50": 0.65},
    "semantic_fpn, transfer": {"val_miou": 0.70},
}
NAMES = {"val_map50": "box AP50", "val_mask_map50": "mask AP50", "val_miou": "mIoU", "val_map": "box AP",
         "val_mask_map": "mask AP", "val_pixel_accuracy": "pixel accuracy", "val_top1": "top-1"}  # fmt: skip
SHOWN = ("val_map50", "val_mask_map50", "val_miou")


def folder(name: str) -> str:
    """Of a run."""
    return name.replace(", ", "-")


def run(name: str, runs: Path) -> dict[str, Any]:
    """Train, or go on; what was reached."""
    words = [folder(CLASSIFIER) if word == CLASSIFIER else word for word in RUNS[name]]
    asked = [*words, "--model", MODEL, "--out", folder(name)]
    clock = runs / f"{folder(name)}.json"
    spent = json.loads(clock.read_text()) if clock.exists() else []
    if not (runs / folder(name) / "results.json").exists():
        print("glocal", shlex.join(asked), flush=True)
        atomic_write_text(clock, json.dumps([*spent, None]))  # a try of which nothing more is known if this is killed
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "glocal", *asked, "--device", "cpu", "--resume"], cwd=runs, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = [*spent, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime]
        atomic_write_text(clock, json.dumps(spent))
    results = json.loads((runs / folder(name) / "results.json").read_text())
    with (runs / folder(name) / "metrics.csv").open(newline="") as file:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    return {
        "command": shlex.join(["glocal", *asked]),
        "minutes_of_a_core": None if None in spent else round(sum(spent) / 60, 1),
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "params": results["params"],
        "epochs": results["epochs"],
        **({"recognised": recognised(runs / folder(name))} if "segment" in words else {}),
        "images_per_s": round(results["images_per_s"], 1),
        "curve": [row for row in rows if any(key.startswith("val_") for key in row)],
    }


@torch.no_grad()
def recognised(run_folder: Path) -> dict[str, float]:
    """What a segmenter sees and what it recognises: IoU of all items against the background, and items named rightly.

    An item is named by the class that most of its pixels are given, the background left out; one that is all background
    is named wrongly.
    """
    saved = load_model(run_folder)
    model, of = saved.model.eval(), saved.config
    mean, std = (torch.tensor(values)[:, None, None] for values in (of.mean, of.std))
    right = items = both = either = 0
    source = items_on_photos().val
    for sample in map(source.__getitem__, range(len(source))):
        image = (torch.from_numpy(np.ascontiguousarray(sample.image)).permute(2, 0, 1) / 255 - mean) / std
        found = model(image[None])[0].argmax(0).numpy()
        is_item = sample.masks.any(axis=0)
        both += int((is_item & (found > 0)).sum())
        either += int((is_item | (found > 0)).sum())
        for mask, label in zip(sample.masks, sample.labels, strict=True):
            votes = np.bincount(found[mask], minlength=len(of.classes))[1:]
            right += bool(votes.any()) and int(votes.argmax()) == label
            items += 1
    return {"items": items, "named_rightly": float(right / items), "iou_of_items": both / either}


def page(results: dict[str, Any]) -> str:
    """docs/results/tasks.md."""
    machine = results["environment"]
    lines = [
        "# Detection and segmentation, trained",
        "",
        f"By `OMP_NUM_THREADS=1 python benchmarks/tasks.py` on {results['date']}: {machine['cpu']}, one core per run, "
        f"torch {machine['torch']}. `{MODEL}` with heads of the preset `small`, trained on the 4,800 training images "
        f"of `{DATA}` (128 pixels, generated from items of Fashion-MNIST and photographs), evaluated on its 200 "
        "validation images, whose items and photograph crops are not in the training set. Transfer: the backbone was "
        "trained as a classifier on fashion-mini. Nothing here was measured on a GPU.",
        "",
        "| run | " + " | ".join(NAMES[key] for key in SHOWN) + " | epochs | core minutes | target | reached |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in results["runs"].items():
        if name == CLASSIFIER:
            continue
        last, asked = found["curve"][-1], ASKED.get(name, {})
        scores = [f"{last[key]:.3f}" if key in last else "" for key in SHOWN]
        took = found["minutes_of_a_core"]
        words = ", ".join(f"{NAMES[key]} {least:.2f}" for key, least in asked.items())
        held = all(last[key] >= least for key, least in asked.items()) and (took is None or took <= LIMIT)
        lines.append(
            f"| {name} | {' | '.join(scores)} | {found['epochs']:g} | {took if took else 'not known'} | {words} "
            f"| {('yes' if held else '**no**') if asked else ''} |"
        )
    lines += ["", f"The classifier has {100 * results['runs'][CLASSIFIER]['curve'][-1]['val_top1']:.1f} % top-1 of "
              f"fashion-mini after {results['runs'][CLASSIFIER]['epochs']:g} epochs.", "",
              f"![learning curves](../figures/{FIGURE.name})", ""]  # fmt: skip
    for name, found in results["runs"].items():
        if seen := found.get("recognised"):
            lines += [f"{name}: items as one class have an IoU of {seen['iou_of_items']:.2f} with the ground truth; of "
                      f"{seen['items']} items {100 * seen['named_rightly']:.0f} % are classified correctly by the "
                      "majority class of their pixels.", ""]  # fmt: skip
    lines += ["The first validation images: ground truth, detections of Mask R-CNN with a score of 0.5 or more, and "
              "the label maps of Semantic FPN, both after transfer.", "",
              f"![ground truth and predictions](../figures/{PICTURE.name})", "", "## Curves", ""]  # fmt: skip
    for name, found in results["runs"].items():
        keys = [key for key in NAMES if key in found["curve"][-1]]
        lines += [f"### {name}", "", f"`{found['command']}`", ""]
        lines += ["| epoch | " + " | ".join(NAMES[key] for key in keys) + " |", "| --- " * (1 + len(keys)) + "|"]
        for row in found["curve"]:
            lines.append(f"| {row['epoch']:g} | " + " | ".join(f"{row[key]:.3f}" for key in keys) + " |")
        lines.append("")
    return "\n".join(lines)


def figure(results: dict[str, Any]) -> str:
    """Scores by epoch as SVG: detection at the left, segmentation at the right."""
    curves = [
        (key, name, found["curve"])
        for key in SHOWN
        for name, found in results["runs"].items()
        if key in found["curve"][-1]
    ]
    looks = Looks(list(dict.fromkeys(name for _, name, _ in curves)))
    with mpl.rc_context({**STYLE, "svg.hashsalt": "tasks"}):
        drawn = Figure(figsize=(11, 4), layout="constrained")
        FigureCanvasSVG(drawn)
        for axes, key in zip(drawn.subplots(1, len(SHOWN)), SHOWN, strict=True):
            for of, name, curve in curves:
                if of == key:
                    x, y = [row["epoch"] for row in curve], [row[key] for row in curve]
                    axes.plot(x, y, color=looks.colour[name], marker=looks.marker[name], label=name)
            for asked in {least for least in (of.get(key) for of in ASKED.values()) if least}:
                axes.axhline(asked, linestyle="--", linewidth=1)
            axes.set(xlabel="epoch", ylim=(0, 1))
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.set_title(NAMES[key], loc="left", fontsize=11, fontweight="bold")
            axes.legend(fontsize=8, loc="lower right")
        buffer = io.StringIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        drawn.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    return stand_alone(buffer.getvalue())


def picture(runs: Path) -> Image.Image:
    """Truth, Mask R-CNN and Semantic FPN in three rows, on the first images of val."""
    source = items_on_photos()
    rows: list[list[np.ndarray]] = [[]]
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "images").mkdir()
        for index in range(SHOWN_IMAGES):
            sample = source.val[index]
            side = SCALE * sample.image.shape[0]
            image = Image.fromarray(sample.image).resize((side, side), Image.Resampling.BICUBIC)
            image.save(place / "images" / f"{index}.png")
            masks = sample.masks.repeat(SCALE, axis=1).repeat(SCALE, axis=2)
            truth = draw_objects(image, SCALE * sample.boxes, sample.labels, None, masks, source.classes)
            rows[0].append(np.asarray(truth))
        for command, model in (("detect", "mask_rcnn"), ("segment", "semantic_fpn")):
            trained = (runs / f"{model}-transfer").resolve()
            asked = ["predict", str(trained), "images", "--out", command, "--draw", "--device", "cpu"]
            subprocess.run([sys.executable, "-m", "glocal", command, *asked], cwd=place, check=True)
            drawn = sorted((place / command / "drawn").iterdir())
            rows.append([np.asarray(Image.open(file).convert("RGB")) for file in drawn])
    return Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in rows]))


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/tasks"))
    parser.add_argument("--only", default=",".join(RUNS), help="runs whose names begin so, the classifier first")
    parser.add_argument("--page", action="store_true", help="only write the page again")
    args = parser.parse_args()
    args.runs.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = json.loads(OUT.read_text()) if OUT.exists() else {"runs": {}}
    wanted = [name for name in RUNS if name.startswith(tuple(args.only.split(",")))]
    for name in () if args.page else dict.fromkeys((CLASSIFIER, *wanted)):
        found = run(name, args.runs)
        results = json.loads(OUT.read_text()) if OUT.exists() else results
        results |= {"date": date.today().isoformat(), "environment": describe_environment()}
        results["fingerprint"] = items_on_photos().fingerprint
        known = results["runs"] | {name: found}
        results["runs"] = {of: known[of] for of in RUNS if of in known}
        atomic_write_text(OUT, json.dumps(results, indent=1) + "\n")
        print(f"{name}: {found['curve'][-1]}", flush=True)
    atomic_write_text(OUT.with_suffix(".md"), page(results))
    atomic_write_text(FIGURE, figure(results))
    if not args.page and all((args.runs / folder(name) / "results.json").exists() for name in ASKED):
        picture(args.runs).save(PICTURE, quality=88)


if __name__ == "__main__":
    main()
