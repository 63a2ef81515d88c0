"""2,000 images with 200 that cannot be read, through train, eval and predict: those are listed, all else is as without.

python benchmarks/reliability/bad_data.py
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.reliability.record import record
from tests.data.making import damage, folder

CLASSES = ("blue", "green", "red")
TRAIN, VAL, BAD = 1500, 300, 200


def glocal(*arguments: str) -> str:
    """Run the command line; its standard output."""
    done = subprocess.run([sys.executable, "-m", "glocal", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"glocal {' '.join(arguments)}: {done.returncode}\n{done.stderr}")
    return done.stdout


def measure(data: Path, out: Path) -> dict[str, Any]:
    """Train, evaluate and predict; scores, weights, and what each of the three says of images it could not read."""
    glocal(
        "train", str(data), "--model", "resnet_micro", "--device", "cpu", "--on-error", "skip", "--out", str(out),
        "-s", "epochs=1", "-s", "image_size=16",
    )  # fmt: skip
    glocal("eval", str(out), str(data), "--on-error", "skip", "--out", str(out / "eval.json"))
    glocal("predict", str(out), str(data), "--out", str(out / "predictions.jsonl"))
    trained, tested = (json.loads((out / name).read_text()) for name in ("results.json", "eval.json"))
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    return {
        "weights": (out / "model.safetensors").read_bytes(),
        "trained": {k: trained[k] for k in ("top1", "nll", "per_class", "confusion", "steps")},
        "tested": {k: tested[k] for k in ("top1", "nll", "ece")},
        "predicted": {
            relative(row["path"], data): {one["class"]: one["probability"] for one in row["top"]}
            for row in rows
            if not row["error"]
        },
        "listed by train": {bad["path"] for bad in trained["skipped"]},
        "listed by eval": {bad["path"] for bad in tested["skipped"]},
        "listed by predict": {relative(row["path"], data) for row in rows if row["error"]},
    }


def largest_difference(one: dict[str, dict[str, float]], other: dict[str, dict[str, float]]) -> float:
    """Of the probabilities of the same images; infinite for other images."""
    if one.keys() != other.keys():
        return math.inf
    pairs = ((one[path][name], other[path].get(name, math.inf)) for path in one for name in one[path])
    return max(abs(a - b) for a, b in pairs)


def relative(path: str, data: Path) -> str:
    """A path as seen from the data."""
    return os.path.relpath(path, data)


def main() -> None:
    """Measure and record."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        os.environ["GLOCAL_CACHE"] = str(root / "cache")
        clean, mixed = root / "clean", root / "mixed"
        folder(clean / "train", dict.fromkeys(CLASSES, TRAIN // 3))
        folder(clean / "val", dict.fromkeys(CLASSES, VAL // 3))
        shutil.copytree(clean, mixed)
        bad = {f"train/{path}" for path in damage(mixed / "train", list(CLASSES), BAD * 4 // 5)}
        bad |= {f"val/{path}" for path in damage(mixed / "val", list(CLASSES), BAD // 5)}
        without, found = measure(clean, root / "a"), measure(mixed, root / "b")
    lists = {name: found[name] for name in found if name.startswith("listed")}
    right = {name: len(listed & bad) for name, listed in lists.items()}  # type: ignore[operator]
    wrong = {name: len(listed - bad) for name, listed in lists.items()}  # type: ignore[operator]
    equal = [name for name in ("weights", "trained", "tested") if without[name] == found[name]]
    apart = largest_difference(without["predicted"], found["predicted"])
    equal.append("predicted" if apart == 0 else f"probabilities differ by up to {apart:.0e}")
    assert not any(without[name] for name in lists), "the clean folder has none"
    record(
        "bad_data",
        what=f"{TRAIN + VAL + len(bad):,} images with {len(bad)} unreadable ones, through `glocal train`, `eval` and "
        "`predict`: unreadable images listed, others listed, outputs equal to those of a run on the cleaned folder",
        asked=f"{len(bad)} each, 0, weights and all scores",
        found=f"{', '.join(str(n) for n in right.values())}; {sum(wrong.values())}; {', '.join(equal)}",
        holds=set(right.values()) == {len(bad)} and not any(wrong.values()) and len(equal) == 4 and apart == 0,
        seed=0,
        seconds=time.perf_counter() - start,
    )


if __name__ == "__main__":
    main()
