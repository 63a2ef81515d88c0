"""Whether a command line could run: commands, options and values exist, and so do targets, extras and files."""

import importlib
import pkgutil
import re
import tomllib
from typing import Any

import typer.main

import glocal.cli
from tests.docs.blocks import ROOT

ALSO = ("tensorboard", "sha256sum", "scontrol", "if", "exit", "code=$?")
"""First words of lines that are others' commands or the shell's own."""
OPENERS = ("OMP_NUM_THREADS=1", "srun")
"""Before a command."""
OPTIONS_OF = ("glocal", "train", "fashion-mini", "--model", "resnet_micro")
"""Whose options a line is that has nothing else."""
SYNOPSIS = ((r"^\[|\]$", ""), (r"^\.\.\.$", ""), (r"\.\.\.$", ""), (r"^([^'/{]+?)\|.*", r"\1"))
"""How a word of a synopsis becomes one of a call: brackets and dots go, of alternatives the first stays."""


def complaints(words: tuple[str, ...], synopsis: bool = False) -> list[str]:
    """What is wrong with a command line; nothing is run.

    Args:
        words: of the line.
        synopsis: the line may be one, with brackets and alternatives.
    """
    words = tuple(word for i, word in enumerate(words) if i or word not in OPENERS)
    if words[0].startswith("-"):
        words = (*OPTIONS_OF, *words)
    if words[0] == "torchrun":
        words = ("glocal", *words[words.index("-m") + 2 :])
    try:
        match words:
            case ("glocal", *rest):
                return _of_glocal([word for word in map(_plain, rest) if word] if synopsis else rest)
            case ("make", target, *_):
                there = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
                return [] if target in there else [f"no target {target} in Makefile"]
            case ("pip", "install", *rest):
                return _of_pip(" ".join(rest))
            case ("python", script, *options):
                text = (ROOT / script).read_text(encoding="utf-8")
                return [f"{script} has no {option}" for option in options if f'"{option}"' not in text]
            case (first, *_) if first in ALSO:
                return []
    except Exception as error:
        return [f"{type(error).__name__}: {getattr(error, 'message', error)}"]
    return ["an unknown command; output belongs into a block of text, or below a line that begins with $"]


def _plain(word: str) -> str:
    for pattern, to in SYNOPSIS if "=" not in word else ():
        word = re.sub(pattern, to, word)
    return word


def _of_pip(what: str) -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = re.findall(r"\[([\w,-]+)\]", what)
    known = project["optional-dependencies"]
    return [f"no extra {name}" for names in asked for name in names.split(",") if name not in known]


def context_of(arguments: list[str]) -> Any:
    """What typer makes of the arguments of a call; raises click's errors for what it refuses."""
    for module in pkgutil.iter_modules(glocal.cli.__path__, "glocal.cli."):  # each registers its command
        importlib.import_module(module.name)
    command, arguments = typer.main.get_command(glocal.cli.app), list(arguments)
    while hasattr(command, "commands"):
        name = arguments.pop(0)
        if name not in command.commands:
            raise ValueError(f"no command {name}")
        command = command.commands[name]
    return command.make_context(command.name, arguments)


def _of_glocal(arguments: list[str]) -> list[str]:
    """Beyond what typer checks: names of models, recipes, heads and claims, settings, budgets, choices."""
    context = context_of(arguments)
    path, given = context.info_name, context.params
    group = next((word for word in arguments[:1] if word in ("detect", "segment", "claims")), "")
    for check in _CHECKS:
        check(group, path, given)
    return []


def _check_models(group: str, command: str, given: dict) -> None:
    from glocal.models.creation import check_model
    from glocal.models.names import split_models

    if command in ("train", "compare", "bench", "convert"):
        named = given.get("models") or given.get("model")
        for name in split_models(named) if isinstance(named, str) else named or ():
            check_model(name, with_keywords=True)


def _check_recipe(group: str, command: str, given: dict) -> None:
    from glocal.training import load_recipe, recipe_names

    tasks = {"": (None, "detect", "segment"), "detect": ("detect",), "segment": ("segment",)}.get(group, ())
    recipe = given.get("recipe")
    if recipe and not recipe.endswith(".yaml"):
        known = [name for task in tasks for name in recipe_names(task)]
        assert recipe in known, f"recipe {recipe}, known: {known}"
    if "settings" in given:
        load_recipe("micro", settings=given["settings"] or ())


def _check_heads(group: str, command: str, given: dict) -> None:
    from glocal.heads import detection, segmentation

    for name, known in (("detector", detection.KINDS), ("segmenter", segmentation.KINDS)):
        if given.get(name):
            assert given[name] in known, f"{name} {given[name]}"


def _check_claims(group: str, command: str, given: dict) -> None:
    from glocal.claims import choose

    if (group, command) == ("claims", "run") and given["ids"] != "ID":
        choose(given["ids"])


def _check_budget(group: str, command: str, given: dict) -> None:
    from glocal.claims import BUDGETS
    from glocal.training import Budget

    if given.get("budget") and not (group == "claims" and given["budget"] in BUDGETS):
        Budget.parse(given["budget"])


CHOICES = {
    "task": ("classify", "detect", "segment"),
    "mode": ("scratch", "finetune", "probe"),
    "precision": ("32", "bf16", "fp16"),
    "strategy": ("ddp", "fsdp"),
    "on_error": ("stop", "skip"),
    "to": ("onnx", "openvino", "torch-export", "aoti", "safetensors"),
    "engine": ("local", "ray"),
}


def _check_choices(group: str, command: str, given: dict) -> None:
    from glocal.cli.analyze import KINDS

    for name, known in {**CHOICES, **({"kind": (*KINDS, "KIND")} if command == "analyze" else {})}.items():
        if isinstance(given.get(name), str):
            assert given[name] in known, f"{name} {given[name]}, known: {known}"
    for runtime in (given.get("runtime") or "eager").split(","):
        assert runtime in ("eager", "compile", "onnxruntime", "openvino", "torch"), f"runtime {runtime}"


_CHECKS = (_check_models, _check_recipe, _check_heads, _check_claims, _check_budget, _check_choices)
