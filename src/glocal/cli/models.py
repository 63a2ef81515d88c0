"""``glocal models``: list models with cost and published accuracy."""

from __future__ import annotations

import csv
import fnmatch
import functools
import json
from importlib import resources
from typing import TYPE_CHECKING, Any

import typer

from glocal.cli import app
from glocal.errors import GlocalError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.table import Table

EXAMPLES = """\b
Examples:
  glocal models                     all models of glocal
  glocal models botnet              names that contain "botnet"
  glocal models 'vit_*_224' --all   timm's models too
  glocal models resnet50 --json     all published numbers with sources
"""


@app.command(epilog=EXAMPLES)
def models(
    pattern: str = typer.Argument("*", metavar="PATTERN", help="Part of a name, or a pattern with * and ?."),
    everything: bool = typer.Option(False, "--all", help="Timm's models too; needs a PATTERN."),
    as_json: bool = typer.Option(False, "--json", help="JSON on standard output, including all published numbers."),
) -> None:
    """List models: family, parameters, multiply-accumulates, published accuracy.

    Parameters and multiply-accumulates (MACs, "FLOPs" in papers) are counted here, with 1,000 classes, at the
    model's own input size. The published ImageNet top-1 is the best known at that size, or else at another.
    """
    from rich.progress import track

    from glocal.cli._display import table_console, text_console

    names = _matching(pattern, everything)
    published = _published()
    console = text_console(stderr=True)
    progress = track(names, "Counting", console=console, transient=True, disable=not console.is_terminal)
    rows = [_describe(name, published.get(name, [])) for name in progress]
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        table_console().print(_table(rows))


def _matching(pattern: str, everything: bool) -> list[str]:
    import timm

    import glocal

    if everything and pattern == "*":
        raise GlocalError("models --all: expected a PATTERN, got none; timm has over a thousand models to count")
    shell_pattern = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    known = timm.list_models() if everything else glocal.list_models()
    names = fnmatch.filter(known, shell_pattern)
    if not names:
        in_timm = len(fnmatch.filter(timm.list_models(), shell_pattern))
        hint = f"; timm has {in_timm}: add --all" if in_timm else nearest(pattern, timm.list_models())
        raise GlocalError(f"models: expected (part of) a model's name, got {pattern!r}{hint}")
    return names


def _published() -> dict[str, list[dict[str, Any]]]:
    """Rows of ``published.csv`` by model, the most accurate first; a number is None if the source does not give it."""
    rows: dict[str, list[dict[str, Any]]] = {}
    lines = (resources.files("glocal.models") / "published.csv").read_text(encoding="utf-8").splitlines()
    for row in csv.DictReader(lines):
        numbers = {key: float(row[key]) if row[key] else None for key in ("params_m", "macs_g", "top1")}
        rows.setdefault(row["name"], []).append({"input": int(row["input"]), **numbers, "source": row["source"]})
    for of_model in rows.values():
        of_model.sort(key=lambda row: row["top1"], reverse=True)
    return rows


def _describe(name: str, published: list[dict[str, Any]]) -> dict[str, Any]:
    import timm

    cfg: Any = timm.get_pretrained_cfg(name)
    row = _counted().get(name) or count(name)
    return {"name": name, **row, "checkpoint": bool(cfg.has_weights), "published": published}


@functools.cache
def _counted() -> dict[str, dict[str, Any]]:
    """Results of `count` for our models, written by `make docs`."""
    text = (resources.files("glocal.models") / "counted.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def count(name: str) -> dict[str, Any]:
    """Family, parameters and MACs of a model at its input size; `make docs` stores those of ours in counted.json."""
    import timm
    import torch

    from glocal.bench import count_macs, count_params

    with torch.device("meta"):
        model = timm.create_model(name)
    cfg: Any = timm.get_pretrained_cfg(name)
    channels, *size = cfg.input_size
    return {
        "family": type(model).__name__,
        "params": count_params(model),
        "macs": count_macs(model, tuple(size), channels),
        "input_size": [channels, *size],
    }


def _table(rows: Iterable[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("Model", "Family"):
        table.add_column(column, no_wrap=True)
    for column in ("Params (M)", "GMACs", "Input", "Top-1", "Checkpoint"):
        table.add_column(column, no_wrap=True, justify="right")
    table.add_column("Source of top-1", overflow="fold", style="dim")
    for row in rows:
        side = row["input_size"][-1]
        at_side = [p for p in row["published"] if p["input"] == side]
        best = next(iter(at_side or row["published"]), None)
        top1, source = "-", ""
        if best:
            top1 = f"{best['top1']:.1f}" + ("" if best["input"] == side else f" @{best['input']}")
            source = best["source"]
        cost = f"{row['params'] / 1e6:.2f}", f"{row['macs'] / 1e9:#.3g}"
        table.add_row(row["name"], row["family"], *cost, str(side), top1, "yes" if row["checkpoint"] else "-", source)
    return table
