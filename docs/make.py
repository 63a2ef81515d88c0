"""Count every model into counted.json and write docs/models.md, the table of them: run by `make docs`."""

import json
import subprocess
import sys
from pathlib import Path

import glocal
from glocal.cli.models import count

HEAD = """# Models

Counted from the code by `make docs` (1,000 classes, at the model's input size; MACs are multiply-accumulates, attention
products included). Published top-1 is on ImageNet-1k for the same architecture, the best known; `glocal models NAME
--json` gives all with their sources.

| model | family | input | parameters | GMACs | published top-1 | source |
| --- | --- | --- | --- | --- | --- | --- |
"""


def main() -> None:
    """Count the models, then ask the command line for them and write the table."""
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
    Path(__file__).with_name("models.md").write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
