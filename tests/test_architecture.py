"""The code is as docs/architecture.md says: imports point one way, and training is read in a few files."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from docs.architecture import PAGE, TABLE, filled

import glocal

SOURCE = Path(glocal.__file__).parent

PACKAGES = tuple(TABLE["packages"])

# A package or single file, and the parts of glocal that it may import; "" is glocal/__init__.py
MAY_IMPORT = {
    "" if name == "glocal" else name: {"" if other == "glocal" else other for other in part["imports"]}
    for name, part in {**TABLE["packages"], **TABLE["files"]}.items()
}

SAVING = {f"glocal.models.{name}" for name in ("io", "creation", "names", "_config", "_safetensors")}

HEAVY = {"torch", "torchvision", "timm", "numpy", "scipy", "lightning_fabric", "torchmetrics", "matplotlib", "PIL"}
HEAVY |= {f"glocal.{package}" for package in PACKAGES if package != "cli"}


def package_of(module: str) -> str:
    """The package of a module: ``glocal.models.vit`` -> ``models``; of ``glocal`` itself ``""``."""
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
    """What a file does that the architecture forbids.

    Args:
        source: the text of the file.
        module: its dotted name.
    """
    tree = ast.parse(source)
    package, found = package_of(module), []
    for node, target, name in imports(tree):
        where = f"{module}:{node.lineno}: {ast.unparse(node)}"
        if target.startswith("."):
            found.append(f"{where}: relative import")
        if target.split(".")[0] == "timm" and package in ("layers", "checkpoints"):
            found.append(f"{where}: importing timm registers the models, which import {package}")
        if target.split(".")[0] != "glocal":
            continue
        # `from glocal import bench` imports the package bench; `from glocal import create_model` only __init__.py
        other = name if target == "glocal" and name in MAY_IMPORT else package_of(target)
        if other not in {package, "errors"} | MAY_IMPORT[package]:
            found.append(f"{where}: {package or 'glocal'} may not import {other or 'glocal'}")
        private = [part for part in [*target.split("."), name] if part.startswith("_") and not part.endswith("__")]
        if private and other != package and (package, other) != ("", "_timm_hook"):
            found.append(f"{where}: {private[0]} is private to {other}")
        elif name.startswith("_") and not name.endswith("__") and target != module:
            found.append(f"{where}: {name} is private to {target}")
    if package == "cli":
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


@pytest.mark.parametrize("package", [name for name in MAY_IMPORT if name != "cli"])  # cli: "every package"
def test_the_page_allows_no_import_that_is_not_there(package):
    imported = set()
    for module in (module for module in FILES if package_of(module) == package):
        for _, target, name in imports(tree_of(FILES[module])):
            imported.add(name if target == "glocal" and name in MAY_IMPORT else package_of(target))
    assert MAY_IMPORT[package] - imported == set()


@pytest.mark.parametrize("module", FILES)
def test_imports_point_one_way(module):
    assert faults(FILES[module].read_text(encoding="utf-8"), module) == []


def test_every_package_has_its_rule():
    assert {package_of(module) for module in FILES} <= set(MAY_IMPORT)


def test_families_know_nothing_of_files_and_heads():
    """What a saved model needs, the models themselves do not."""
    families = {name: path for name, path in FILES.items() if package_of(name) == "models" and name not in SAVING}
    reached = {target for path in families.values() for _, target, _ in imports(ast.parse(path.read_text("utf-8")))}
    assert {package_of(target) for target in reached if target.startswith("glocal.")} <= {
        "models", "layers", "checkpoints", "errors", "formatting"
    }  # fmt: skip


def test_nothing_goes_in_circles():
    seen: set[str] = set()
    while ready := {package for package, others in MAY_IMPORT.items() if package not in seen and others <= seen}:
        seen |= ready
    assert seen == set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("glocal.layers.attention", "from glocal.models import ResNet"),
        ("glocal.layers.attention", "from timm.layers import to_2tuple"),
        ("glocal.models.vit", "import glocal.training.trainer"),
        ("glocal.metrics.coco", "from glocal.training import TrainConfig"),
        ("glocal.training.plan", "from glocal.report import write_report"),
        ("glocal.comparison.plan", "def f():\n    from glocal import inference"),
        ("glocal.data.images", "from glocal.cli import app"),
        ("glocal.bench.speed", "from glocal.models import create_model"),
        ("glocal.bench.environment", "from glocal import __version__"),  # its first names are those of models
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
        ("glocal.bench.environment", "from glocal.version import __version__"),
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


# What docs/architecture.md says beside the imports.


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def definitions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.stmt]]:
    """Classes and functions by their dotted name in the file."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name, node
            yield from definitions(node, f"{prefix}{node.name}.")
        elif not isinstance(node, ast.expr):
            yield from definitions(node, prefix)


def constants(tree: ast.Module) -> set[str]:
    """Names that a file assigns."""
    names = set()
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def num_lines(node: ast.stmt) -> int:
    return node.end_lineno - node.lineno + 1


def imported_modules(module: str) -> set[str]:
    """Modules of glocal that a module imports, anywhere in it; of a package also those that its names come from."""
    found = set()
    for _, target, name in imports(tree_of(FILES[module])):
        found |= {one for one in (target, f"{target}.{name}") if one in FILES}
        if target in FILES and FILES[target].name == "__init__.py":
            reexports = {alias: source for _, source, alias in imports(tree_of(FILES[target]))}
            found |= {source for alias, source in reexports.items() if alias == name and source in FILES}
    return found


def test_the_page_has_the_tables_of_the_code():
    page = PAGE.read_text(encoding="utf-8")
    assert page == filled(page), "stale: python docs/architecture.py"


@pytest.mark.parametrize(
    "function",
    [name for step in TABLE["image"] for name in step["functions"]]
    + [f"{step['file']}:{step['function']}" for step in TABLE["training"]],
)
def test_the_page_names_what_is_there(function):
    file, name = function.split(":")
    tree = tree_of(SOURCE / file)
    assert name in {*dict(definitions(tree)), *constants(tree)}


def test_backward_is_at_most_six_files_from_the_command_line():
    steps = [
        f"glocal.{step['file'].removesuffix('.py').removesuffix('/__init__').replace('/', '.')}"
        for step in TABLE["training"]
    ]
    assert len(steps) <= 6
    for place, step in enumerate(steps[1:], start=1):
        assert any(step in imported_modules(earlier) for earlier in steps[:place]), f"{step} is not in sight"
    backward = {module for module, path in FILES.items() if re.search(r"fabric\.backward\(", path.read_text("utf-8"))}
    assert backward == {"glocal.training.trainer"}
    assert "glocal.training.trainer" in steps


def test_the_loop_is_read_in_one_sitting():
    fit = dict(definitions(tree_of(FILES["glocal.training.trainer"])))["Trainer.fit"]
    assert num_lines(fit) <= 60


def test_lightning_is_imported_where_it_is_used():
    imported = {
        (target.split(".")[0], module)
        for module, path in FILES.items()
        for _, target, _ in imports(tree_of(path))
        if "lightning" in target.split(".")[0]
    }
    assert imported == {
        ("lightning_fabric", "glocal.training.fabric"),
        ("lightning_fabric", "glocal.training.lightning"),
    }
    assert not [module for module, path in FILES.items() if "pytorch_lightning" in path.read_text("utf-8")]


@pytest.mark.parametrize("module", [module for module in FILES if package_of(module) == "cli"])
def test_commands_are_thin(module):
    """No function of the command line has more than 60 lines, options included."""
    functions = {name: node for name, node in definitions(tree_of(FILES[module])) if isinstance(node, ast.FunctionDef)}
    assert {name: num_lines(node) for name, node in functions.items() if num_lines(node) > 60} == {}


PRIVATE_WORDS = {
    "Pace", "Request", "Terms", "Call", "Keeping", "Share", "Objective", "Assignment", "ComparedTask", "Batched", "Key",
    "Found", "Truth", "overlap", "mean_overlap", "neither", "MOST_FOUND", "OVERLAPS", "look_at_objects", "View",
    "Measure", "MEASURES", "take_over", "Transfer", "Engine", "deviation", "keep_stages", "gate", "room", "house",
}  # fmt: skip
"""Names that only this code used, where torch, timm, torchmetrics or COCO have one (CONTRIBUTING.md)."""


@pytest.mark.parametrize("module", FILES)
def test_names_are_the_fields(module):
    assert {name.lstrip("_") for name in names_of(tree_of(FILES[module]))} & PRIVATE_WORDS == set()


def names_of(tree: ast.Module) -> set[str]:
    """Classes, functions and methods, and the constants of the module."""
    return {name.rpartition(".")[2] for name, _ in definitions(tree)} | constants(tree)


@pytest.mark.parametrize("word", ["Results", "Progress", "Observer", "Layout", "Settings", "Engine", "Prediction"])
def test_a_name_means_one_thing(word):
    """These once had several meanings each: one may keep the short name, others say of what they are."""
    defined = [module for module, path in FILES.items() if word in names_of(tree_of(path))]
    assert len(defined) <= 1, defined


PARAPHRASES = (
    "process that reads images", "processes that read images", "the call is wrong", "to go on:", "going on from step",
    "through the gate", "the image gate", "the gate alone", "by heart", "in the same room", "is whole; start anew",
    "looking into it", "taken for each other", "steps that were left out", "as coco has it", "share of the budget",
    "shares of the budget", "beside the truth", "the bits of the run", "that has less to do", "presses what is longer",
    "nothing to normalise with", "run at once", "a folder that is there", "one a processor", "what was found on",
)  # fmt: skip
"""Sentences that paraphrased words of torch, timm, Lightning or COCO, in lower case (CONTRIBUTING.md)."""


def paraphrases(text: str) -> list[str]:
    """The paraphrases in a text, also in strings and lines that are continued on the next line."""
    joined = re.sub(r'"\s*\n\s*f?"', "", text.lower())
    flat = " ".join(joined.split())
    return [phrase for phrase in PARAPHRASES if phrase in flat]


PAGES = [*sorted(PAGE.parent.glob("*.md")), *(PAGE.parents[1] / name for name in ("README.md", "CHANGELOG.md"))]


@pytest.mark.parametrize("files", [[*SOURCE.rglob("*.py"), *SOURCE.rglob("*.j2")], PAGES], ids=["src", "docs"])
def test_sentences_use_the_fields_words(files):
    """Docstrings, messages and pages."""
    assert {str(path): found for path in files if (found := paraphrases(path.read_text("utf-8")))} == {}
    assert paraphrases('"A process that "\n    f"reads\n images"') == ["process that reads images"]


BY_NAME = {
    "glocal": "names of the package, imported at their first use (PEP 562)",
    "glocal.analysis.result": "fields of any result, as JSON",
    "glocal.comparison.detection": "fields of Matches by the names they have on file",
    "glocal.metrics.classification": "fields of Outcomes, each joined alone",
    "glocal.models._config": "constructors that a class has of its own",
    "glocal.training.checks": "fields of a configuration, checked by their annotations",
    "glocal.training.config": "settings by the names that a recipe gives: those are data",
}
"""Modules that find an attribute by a computed name, and why."""

PRIVATE = {
    ("glocal.analysis.depth", "_saved_weight"): "what autograd kept has no public name",
    ("glocal.bench.macs", "_forward_hooks"): "of a copy, which is counted without its hooks",
    ("glocal.bench.macs", "_forward_pre_hooks"): "likewise",
    ("glocal.bench.memory", "_cdata"): "the identity of a storage that has no address",
    ("glocal.bench.suite", "_dynamo"): "a module of torch that has no public name",
    ("glocal.comparison.processes", "_exit"): "os._exit is documented",
    ("glocal.data.subprocess_pool", "_exit"): "os._exit is documented",
    ("glocal.export.graph", "_upsample_bicubic2d_aa"): "an operator",
    ("glocal.export.runtimes", "_inductor"): "a module of torch that has no public name",
    ("glocal.layers.linear", "_C"): "whether torch.jit traces has no public name",
    ("glocal.layers.linear", "_get_tracing_state"): "likewise",
    ("glocal.models.optimization", "_forward_hooks"): "read alone: a model with hooks is refused",
    ("glocal.models.optimization", "_forward_pre_hooks"): "likewise",
    ("glocal.signals", "_exit"): "os._exit is documented",
    ("glocal.training.fabric", "_desired_input_dtype"): "of the class of Fabric that Autocast inherits",
}
"""Private attributes of other libraries that a module uses, and why."""
NAMED_TUPLE = ("_replace", "_fields", "_asdict", "_make")


def attributes_by_name(tree: ast.AST) -> list[str]:
    """Attributes that are read or set by a computed name, and objects that are changed into others."""
    found = []
    for node in ast.walk(tree):
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        computed = called in ("getattr", "hasattr") and not isinstance(node.args[1], ast.Constant)
        if called in ("setattr", "delattr", "vars") or computed:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
        if isinstance(node, ast.Attribute) and node.attr in ("__class__", "__dict__", "__setstate__"):
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def private_attributes(tree: ast.AST) -> set[str]:
    """Private attributes that the file does not define."""
    nodes = [*ast.walk(tree)]
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    own |= {node.attr for node in attributes if ast.unparse(node.value) == "self" and isinstance(node.ctx, ast.Store)}
    private = {node.attr for node in attributes if node.attr.startswith("_") and not node.attr.endswith("__")}
    return private - own - {*NAMED_TUPLE}


@pytest.mark.parametrize("module", FILES)
def test_state_is_found_by_attribute(module):
    found = attributes_by_name(tree_of(FILES[module]))
    assert bool(found) == (module in BY_NAME), found or "it is in the list for nothing"


@pytest.mark.parametrize("module", FILES)
def test_private_attributes_are_stated(module):
    assert private_attributes(tree_of(FILES[module])) == {name for of, name in PRIVATE if of == module}


@pytest.mark.parametrize("module", [module for module in FILES if package_of(module) in ("training", "tasks")])
def test_the_loop_guesses_no_attribute(module):
    """What a task, a data set or a model may have is declared; a default would hide a misspelt name."""
    calls = [node for node in ast.walk(tree_of(FILES[module])) if isinstance(node, ast.Call)]
    guessed = [call for call in calls if ast.unparse(call.func) == "hasattr" or len(call.args) == 3]
    assert [ast.unparse(call) for call in guessed if ast.unparse(call.func) in ("getattr", "hasattr")] == []


@pytest.mark.parametrize(
    "source",
    [
        "def f(model, name):\n    return getattr(model, name)",
        "setattr(self, f'stage{i}', stage)",
        "model.__class__ = Other",
        "vars(self).update(vars(model))",
        "model.__dict__['last'] = last",
    ],
)
def test_a_planted_name_is_found(source):
    assert attributes_by_name(ast.parse(source))


def test_a_planted_private_attribute_is_found():
    source = "class A:\n    def __init__(self, b):\n        self._own, b._parameters = 1, {}"
    assert private_attributes(ast.parse(source)) == {"_parameters"}
