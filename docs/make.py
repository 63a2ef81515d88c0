"""Count every model into counted.json, write docs/models.md, the table of them, and the picture of the generated set.

Also the tables of docs/architecture.md.

Run by `make docs`.
"""

import json
import subprocess
import sys
from pathlib import Path

import architecture
import numpy as np
from PIL import Image

import glocal
from glocal.cli.models import count
from glocal.data.pasted import items_on_photos
from glocal.tasks.drawing import draw_objects

HEAD = """# Models

Counted from the code by `make docs` (1,000 classes, at the model's input size; MACs are multiply-accumulates, attention
products included). Published top-1 is on ImageNet-1k for the same architecture, the best known; `glocal models NAME
--json` gives all with their sources.

| model | family | input | parameters | GMACs | published top-1 | source |
| --- | --- | --- | --- | --- | --- | --- |
"""


def draw_samples() -> Image.Image:
    """The first twelve samples of items-on-photos, in two rows, their boxes drawn."""
    source = items_on_photos(256)
    tiles = []
    for index in range(12):
        sample = source.train[index]
        image = Image.fromarray(sample.image)
        tiles.append(np.asarray(draw_objects(image, sample.boxes, sample.labels, None, None, source.classes)))
    return Image.fromarray(np.concatenate([np.concatenate(tiles[row : row + 6], axis=1) for row in (0, 6)]))


def main() -> None:
    """Count the models, then ask the command line for them and write the table."""
    architecture.main()
    counted = Path(__file__).parents[1] / "src/glocal/models/counted.json"
    rows = {name: count(name) for name in glocal.list_models()}
    counted.write_text("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in rows.items()) + "\n}\n")
    command = [sys.executable, "-m", "glocal", "models", "--json"]
    models = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    lines = []
    for model in models:
        best = max((row for row in model["published"] if row["top1"]), key=lambda row: row["top1"], default=None)
        accuracy = f"{best['top1']} @{best['input']} | {best['source']}" if best else "- | -"
        cost = f"{model['params'] / 1e6:.2f}M | {model['macs'] / 1e9:.3f}"
        lines.append(f"| `{model['name']}` | {model['family']} | {model['input_size'][-1]} | {cost} | {accuracy} |")
    draw_samples().save(Path(__file__).parent / "figures" / "items-on-photos.jpg", quality=88)
    Path(__file__).with_name("models.md").write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
