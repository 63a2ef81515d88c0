"""Run a block as a reader would, on tiny data: what is put in the place of what, and which files are there."""

import contextlib
import io
import re
import shlex
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image

import glocal
import glocal.cli
from glocal.models.io import ModelConfig, save_model
from tests.data.annotating import coco_folder
from tests.data.making import picture
from tests.docs.blocks import PYTHON, ROOT, Block, Line
from tests.docs.parsing import OPENERS
from tests.shapes import CLASSES, write_folder

IN_COMMANDS = (
    (
        r"^glocal train \.\.\.",
        "glocal train fashion-mini --model resnet_micro -s epochs=0.01 -s checkpoint_every_steps=20",
    ),
    (r"\{000000\.\.000099\}", "000000"),
    (r"\bRUN\b", "run"),
    (r"\bDATA\b|\bIMAGES\.\.\.|\bimagenet\b|\bfashion-mnist\b", "photos"),
    (r"\bFILE\b", "file"),
    (r"\bitems-on-photos\b", "items-on-photos:64"),
    (r"\bdocs/results\b", f"{ROOT}/docs/results"),
    (r"\bepochs=[0-9.]+", "epochs=0.01"),
    (r"--budget \S+", "--budget 0.02ep"),
    (r"--seeds \S+", "--seeds 1"),
    (r"--device cuda\b", "--device cpu"),
    (r"--(image-)?size \S+", r"--\1size 32"),
    (r"\b(res|bot)net50\b", r"\1net_micro"),
    (r"\bvit_small_patch16_224\b", "vit_micro"),
    (r"\bcvt_13\b", "cvt_micro"),
    (r"\bcat_small\b", "cat_micro"),
    (r"\bconformer_small_patch(16|32)\b", "conformer_micro"),
    (r"\bt2t_vit_14\b", "t2t_vit_micro"),
)
"""In the command lines of a block that is run: patterns, and what stands in their place."""
OF_COMMANDS = {
    "bench": "--size 32 --seconds 0.05",
    "claims run": "--budget 0.05ep --seeds 1 --device cpu",
    "compare": "--models resnet_micro,vit_micro --budget 0.02ep --seeds 1 --image-size 32 --device cpu",
    "recommend": "--budget 1ep --seeds 1 --device cpu",
    "train": "-s epochs=1 --workers 0 --device cpu",
    "detect train": "-s epochs=0.01 -s image_size=64 --preset small --workers 0 --device cpu",
    "segment train": "-s epochs=0.01 -s image_size=64 --preset small --workers 0 --device cpu",
}
"""By command: options that it gets first, for a line's own to come after them."""
IN_PYTHON = (
    (r'"resnet50\.a1_in1k", pretrained=True', '"resnet50.a1_in1k"'),  # no network: random weights
    (r"\bt2t_vit_14\b", "t2t_vit_micro"),
    (r"\bcat_small\b", "cat_micro"),
    (r'"conformer_tiny_patch16"\)\.eval', '"conformer_micro").eval'),  # to be exported: a quarter of an hour of a core
    (r"seconds=5\.0", "seconds=0.1"),
    (r'load_recipe\("detect_micro"\)', 'load_recipe("detect_micro", settings=["epochs=1", "image_size=64"])'),
)
"""In a Python block: patterns, and what stands in their place."""
GIVEN: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "analysis.md": lambda _: {"model": _model("resnet_micro"), "images": torch.randn(4, 3, 32, 32)},
    "bench.md": lambda _: {"model": _model("resnet_micro"), "baseline": _model("resnet_micro")},
    "checkpoints.md": lambda _: {"checkpoint": _model("cat_micro", 1000).state_dict()},
    "data.md": lambda _: {"images": [(path, 0) for path in Path("photos").rglob("*.png")]},
    "data-detection.md": lambda names: {
        "boxes": np.ones((1, 4)),
        "scores": np.ones(1),
        "labels": np.zeros(1, int),
        "masks": np.ones((1, *names["sample"].image.shape[:2]), bool),
        "label_map": np.zeros((8, 8), np.uint8),
    },
    "export.md": lambda _: {"model": _model("resnet_micro"), "names": CLASSES, "images": torch.randn(2, 3, 224, 224)},
}
"""By page: what its Python takes for granted."""


def write_files(folder: Path, blocks: Sequence[Block]) -> None:
    """Write what blocks name, and do not write themselves, into a folder: data, weights, a trained run."""
    tables = {block: IN_PYTHON if block.language in PYTHON else IN_COMMANDS for block in blocks}
    text = "\n".join(replaced(block.text, table) for block, table in tables.items())
    for name, write in FILES.items():
        word = rf"(?<![\w-]){re.escape(name)}(?![\w-])"
        if re.search(word, text) and not re.search(rf"--out {word}", text):
            write(folder / name)


def _model(name: str, num_classes: int = 3) -> Any:
    return glocal.create_model(name, num_classes=num_classes).eval()


def _photos(path: Path) -> None:
    write_folder(path, 60)


def _shards(path: Path) -> None:
    path.mkdir()
    for part, count in (("train", 12), ("val", 6)):
        with tarfile.open(path / f"{part}-000000.tar", "w") as shard:
            for i in range(count):
                buffer = io.BytesIO()
                picture(i).save(buffer, "PNG")
                for kind, content in (("png", buffer.getvalue()), ("cls", str(i % 2).encode())):
                    entry = tarfile.TarInfo(f"{part}{i:04d}.{kind}")
                    entry.size = len(content)
                    shard.addfile(entry, io.BytesIO(content))


def _coco(path: Path) -> None:
    coco_folder(path, [1, 2, 3, 0, 4, 1], [2, 3])


def _label_maps(path: Path) -> None:
    """ADE20K's layout."""
    rng = np.random.default_rng(0)
    for part, count in (("training", 4), ("validation", 2)):
        for kind in ("images", "annotations"):
            (path / kind / part).mkdir(parents=True)
        for i in range(count):
            picture(i, (64, 64)).save(path / f"images/{part}/{i}.jpg")
            Image.fromarray(rng.integers(1, 4, (64, 64), dtype=np.uint8)).save(path / f"annotations/{part}/{i}.png")


def _weights(model: str) -> Any:
    def write(path: Path) -> None:
        from safetensors.torch import save_file

        save_file(timm.create_model(model).state_dict(), path)

    return write


def _run(path: Path) -> None:
    model = _model("resnet_micro")
    save_model(model, path, ModelConfig.of_classifier(model, classes=CLASSES, image_size=32))


FILES = {
    "photos": _photos,
    "new-photos": _photos,
    "shards": _shards,
    "coco": _coco,
    "ade20k": _label_maps,
    "masks": _label_maps,
    "run": _run,
    "my.yaml": lambda path: path.write_text("epochs: 0.01\n"),
    "photo.jpg": lambda path: picture().save(path),
    "photo.tif": lambda path: picture().save(path),
    "81.5_T2T_ViT_14.pth.tar": lambda path: torch.save(_model("t2t_vit_micro", 1000).state_dict(), path),
    "resnet_micro.safetensors": _weights("resnet_micro"),
    "cvt_micro.safetensors": _weights("cvt_micro"),
    "t2t_vit_micro.safetensors": _weights("t2t_vit_micro"),
}
"""By name, as it is after the replacements: how a file or folder is written that a page names."""


def replaced(text: str, table: tuple[tuple[str, str], ...]) -> str:
    for pattern, to in table:
        text = re.sub(pattern, to, text)
    return text


def run(block: Block, names: dict[str, Any]) -> None:
    """Run a block in the current folder; raises what goes wrong.

    Args:
        block: of shell or Python.
        names: of the page's Python so far.
    """
    if block.language in PYTHON:
        code = compile(replaced(block.text, IN_PYTHON), block.where, "exec")
        exec(code, names)
        return
    for line in block.lines():
        words = tuple(word for i, word in enumerate(line.words) if i or word not in OPENERS)
        if words[0] == "glocal":
            _run_line(Line(words, line.output))


def _run_line(line: Line) -> None:
    """Run ``glocal ...``; where the page shows an error, exit code 2 and that message are expected."""
    arguments = shlex.split(replaced(" ".join(map(_quoted, line.words)), IN_COMMANDS))[1:]
    for command, options in OF_COMMANDS.items():
        parts = command.split()
        if arguments[: len(parts)] == parts:
            taken = options.replace("--budget 0.02ep ", "") if "probe" in arguments else options  # a probe converges
            arguments[len(parts) : len(parts)] = taken.split()
    code, output = call(arguments)
    said = shlex.join(["glocal", *arguments])
    error = line.output if line.output.startswith("Error: ") else None
    assert code == (2 if error else 0), f"{said}\nexit code {code}\n{output}"
    if error:
        expected = ".*".join(re.escape(part) for part in " ".join(error.split()).split("..."))
        assert re.search(expected, " ".join(output.split())), f"{said}\nexpected {error}\ngot {output}"


def _quoted(word: str) -> str:
    return word if re.fullmatch(r"\.\.\.|IMAGES\.\.\.", word) else shlex.quote(word)


def call(arguments: list[str]) -> tuple[int, str]:
    """Exit code, and what was written on both outputs."""
    before, sys.argv = sys.argv, ["glocal", *arguments]
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            glocal.cli.main()
    except SystemExit as stop:
        return int(stop.code or 0), output.getvalue()
    finally:
        sys.argv = before
    return 0, output.getvalue()


def take_for_granted(page: str, names: dict[str, Any]) -> None:
    """Put into ``names`` what the Python of a page takes for granted."""
    if page in GIVEN:
        with contextlib.suppress(KeyError):  # an earlier block is to make something of it
            names.update(GIVEN[page](names))
