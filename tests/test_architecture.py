"""Imports point one way: the rooms of the house and who may enter which (docs/architecture.md)."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import glocal

SOURCE = Path(glocal.__file__).parent

ROOMS = (
    "layers",
    "checkpoints",
    "models",
    "data",
    "metrics",
    "report",
    "bench",
    "training",
    "comparison",
    "inference",
    "export",
    "analysis",
    "heads",
    "tasks",
    "claims",
    "recommend",
)

# A room, and the parts of glocal that it may import beside itself and glocal.errors.
MAY_IMPORT = {
    "layers": set(),
    "checkpoints": set(),
    "models": {"layers", "checkpoints", "heads", "bench", "files", "rng"},
    "heads": {"layers"},
    "data": {"files"},
    "metrics": {"data"},
    "report": {"files", "formatting"},
    "bench": {"", "files"},  # "" is glocal itself: its version, for the description of the environment
    "training": {"models", "metrics", "data", "bench", "files", "run_dir", "rng", "signals"},
    "comparison": {
        "",
        "tasks",
        "training",
        "models",
        "heads",
        "metrics",
        "analysis",
        "data",
        "bench",
        "files",
        "run_dir",
        "formatting",
    },
    "export": {"models", "checkpoints", "training", "data", "files"},
    "tasks": {"training", "models", "heads", "metrics", "data", "bench", "files", "run_dir", "rng"},
    "inference": {"export", "training", "models", "metrics", "data", "files", "run_dir"},
    "claims": {"", "comparison", "training", "models", "analysis", "layers", "data", "bench", "files", "formatting"},
    "recommend": {"", "tasks", "training", "models", "analysis", "data", "bench"},
    "analysis": {"layers"},  # of them attention alone: tests/analysis/test_models.py
    "cli": set(ROOMS) | {"", "files", "formatting", "run_dir", "signals"},
    # single files
    "": {"_timm_hook", "models"},
    "_timm_hook": set(),
    "__main__": {"cli"},
    "errors": set(),
    "files": set(),
    "rng": set(),
    "run_dir": {"files"},
    "formatting": set(),
    "signals": set(),
}

SAVING = {f"glocal.models.{name}" for name in ("io", "creation", "names", "_config", "_safetensors")}

HEAVY = {"torch", "torchvision", "timm", "numpy", "scipy", "pytorch_lightning", "torchmetrics", "matplotlib", "PIL"}
HEAVY |= {f"glocal.{room}" for room in ("layers", "checkpoints", "models", "data", "report", "bench", "training")}
HEAVY |= {"glocal.comparison", "glocal.inference", "glocal.export", "glocal.analysis", "glocal.heads", "glocal.tasks"}
HEAVY |= {"glocal.claims", "glocal.recommend", "glocal.metrics"}


def room_of(module: str) -> str:
    """The room of a module: ``glocal.models.vit`` -> ``models``; of ``glocal`` itself ``""``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports(tree: ast.AST) -> Iterator[tuple[ast.stmt, str, str]]:
    """Every import of glocal, anywhere in a file: (statement, module, name); name is "" for ``import module``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node, "." * node.level + (node.module or ""), alias.name) for alias in node.names)


def faults(source: str, module: str) -> list[str]:
    """What a file does that the house forbids.

    Args:
        source: the text of the file.
        module: its dotted name.
    """
    tree = ast.parse(source)
    room, found = room_of(module), []
    for node, target, name in imports(tree):
        where = f"{module}:{node.lineno}: {ast.unparse(node)}"
        if target.startswith("."):
            found.append(f"{where}: relative import")
        if target.split(".")[0] == "timm" and room in ("layers", "checkpoints"):
            found.append(f"{where}: importing timm registers the models, which import {room}")
        if target.split(".")[0] != "glocal":
            continue
        # `from glocal import bench` enters the room bench; `from glocal import __version__` stays at the door
        other = name if target == "glocal" and name in MAY_IMPORT else room_of(target)
        if other not in {room, "errors"} | MAY_IMPORT[room]:
            found.append(f"{where}: {room or 'glocal'} may not import {other or 'glocal'}")
        private = [part for part in [*target.split("."), name] if part.startswith("_") and not part.endswith("__")]
        if private and other != room and (room, other) != ("", "_timm_hook"):
            found.append(f"{where}: {private[0]} is private to {other}")
        elif name.startswith("_") and not name.endswith("__") and target != module:
            found.append(f"{where}: {name} is private to {target}")
    if room == "cli":
        found += [f"{module}:{line}: {name} at import time" for line, name in imported_at_once(tree) if is_heavy(name)]
    return found


def imported_at_once(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Modules imported when the file is, and not when a function is called or only for the type checker."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            for statement, target, name in imports(node):
                yield statement.lineno, f"{target}.{name}" if target == "glocal" and name else target
        yield from imported_at_once(node)


def is_heavy(module: str) -> bool:
    return any(module == heavy or module.startswith(f"{heavy}.") for heavy in HEAVY)


FILES = {
    ".".join(("glocal", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
}


@pytest.mark.parametrize("module", FILES)
def test_imports_point_one_way(module):
    assert faults(FILES[module].read_text(encoding="utf-8"), module) == []


def test_every_room_has_its_rule():
    assert {room_of(module) for module in FILES} <= set(MAY_IMPORT)


def test_families_know_nothing_of_files_and_heads():
    """What a saved model needs, the models themselves do not."""
    families = {name: path for name, path in FILES.items() if room_of(name) == "models" and name not in SAVING}
    reached = {target for path in families.values() for _, target, _ in imports(ast.parse(path.read_text("utf-8")))}
    assert {room_of(target) for target in reached if target.startswith("glocal.")} <= {
        "models", "layers", "checkpoints", "errors"
    }  # fmt: skip


def test_nothing_goes_in_circles():
    seen: set[str] = set()
    while ready := {room for room, others in MAY_IMPORT.items() if room not in seen and others - {""} <= seen}:
        seen |= ready
    assert seen == set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("glocal.layers.attention", "from glocal.models import ResNet"),
        ("glocal.layers.attention", "from timm.layers import to_2tuple"),
        ("glocal.models.vit", "import glocal.training.trainer"),
        ("glocal.metrics.coco", "from glocal.training import TrainConfig"),
        ("glocal.comparison.plan", "from glocal.report import write_report"),
        ("glocal.comparison.plan", "def f():\n    from glocal import export"),
        ("glocal.data.gate", "from glocal.cli import app"),
        ("glocal.bench.speed", "from glocal.models import create_model"),
        ("glocal.models.vit", "from glocal.models.resnet import _cfg"),
        ("glocal.cli.compare", "def run():\n    from glocal.comparison._lock import Lock"),
        ("glocal.models.vit", "from .resnet import ResNet"),
        ("glocal.cli.compare", "import torch"),
        ("glocal.cli.compare", "import torch.nn as nn"),
        ("glocal.cli.compare", "try:\n    from timm import create_model\nexcept ImportError:\n    pass"),
        ("glocal.cli.compare", "from glocal import data"),
        ("glocal.cli.compare", "from glocal.comparison import compare"),
    ],
)
def test_a_planted_fault_is_found(module, source):
    assert len(faults(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("glocal.models.vit", "from glocal.layers import MHSA2d"),
        ("glocal.models.vit", "from glocal.models._backbone import build"),
        ("glocal.training.trainer", "from glocal.data import load\nfrom glocal.errors import GlocalError, nearest"),
        ("glocal.bench.environment", "import glocal\nfrom glocal import __version__"),
        ("glocal.cli.compare", "def run():\n    import torch\n    from glocal.comparison import compare"),
        ("glocal.cli.compare", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
    ],
)
def test_what_is_allowed_is_not_reported(module, source):
    assert faults(source, module) == []


def test_every_dependency_is_imported():
    """What tests alone need is in the extra dev. Lightning's logger imports tensorboard."""
    project = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *(one for name, extra in extras.items() if name != "dev" for one in extra)]
    modules = {"pillow": "PIL"}
    names = {re.match(r"[a-z0-9-]+", requirement)[0] for requirement in needed}
    source = "\n".join(path.read_text(encoding="utf-8") for path in FILES.values())
    imported = set(re.findall(r"^ *(?:from|import) (\w+)|require\(\"(\w+)", source, re.MULTILINE))
    imported = {module for pair in imported for module in pair}
    unused = {name for name in names if modules.get(name, name.replace("-", "_")) not in imported}
    assert unused == {"tensorboard"}
