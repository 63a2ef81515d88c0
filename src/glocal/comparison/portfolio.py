"""Portfolios: named lists of models to compare, each with its kind and the reason why it is there.

The included ones are in ``portfolios.toml``; a user's own is a file of the same table, or of one name per line.
"""

import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import timm
import torch
from torch import nn

from glocal.errors import GlocalError, nearest, short
from glocal.models.creation import check_model
from glocal.models.names import parse_model, spell_model

Kind = Literal["cnn", "transformer", "mix"]
_KINDS: tuple[Kind, ...] = get_args(Kind)
_FILE = Path(__file__).with_name("portfolios.toml")
_ROW_KEYS = ("model", "kind", "reason", "pair")
_KEYS = ("name", "note", "rows")
_HELP = "each [[rows]] has a model, and may have kind, reason and pair"
_ATTENTION = re.compile(r"Attention|Attn|Attend|MHSA|Mhsa|SHSA|Lambda")
_NO_ATTENTION = re.compile("Squeeze|Channel|Cbam|Spatial|Split|Selective|Pool")
"""Attention between positions by names of classes, and what is only called so: over channels, or in the head."""


@dataclass(frozen=True)
class Row:
    """One model of a portfolio.

    Attributes:
        model: name of timm or glocal, with the tag where the weights matter.
        kind: ``cnn`` has no attention, ``transformer`` has convolution in the patch embedding alone, ``mix`` has both.
        reason: why it is there, a sentence.
        pair: name that a CNN and a Transformer with the same pretraining share.
    """

    model: str
    kind: Kind
    reason: str
    pair: str | None = None


@dataclass(frozen=True)
class Portfolio:
    """Models to compare.

    Attributes:
        name: of an included portfolio, or of the file without its suffix.
        rows: the models.
        note: what to know of all of them.
    """

    name: str
    rows: tuple[Row, ...]
    note: str


def portfolio_names() -> tuple[str, ...]:
    """Included portfolios."""
    return tuple(_included())


def default_portfolio(device: str) -> str:
    """The portfolio for a device such as ``cpu``, ``cuda:0`` or ``mps``: small models on a CPU."""
    return "balanced" if device.partition(":")[0] in ("cuda", "mps") else "quick"


def load_portfolio(name_or_file: str) -> Portfolio:
    """An included portfolio, or one from a file.

    Args:
        name_or_file: of `portfolio_names`, or a ``.toml`` file (``note`` and ``[[rows]]``), or a ``.txt`` file of one
            name per line, ``#`` before comments. Kinds that a file leaves out come from the model's layers.

    Raises:
        GlocalError: for an unknown name, a file that cannot be read, or one with unknown models or duplicates.
    """
    included = _included()
    if name_or_file in included:
        return _portfolio("portfolio", included[name_or_file], name_or_file)
    path = Path(name_or_file)
    if path.suffix not in (".toml", ".txt"):
        raise GlocalError(
            f"portfolio: expected one of {', '.join(included)}, or a .toml or .txt file, got {name_or_file!r}"
            f"{nearest(name_or_file, included)}; `--models` takes single models"
        )
    where = f"portfolio {path}"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise GlocalError(
            f"{where}: expected a readable text file, got {error}; the included portfolios are {', '.join(included)}"
        ) from error
    if path.suffix == ".txt":
        lines = [line.partition("#")[0].strip() for line in text.splitlines()]
        return _portfolio(where, {"rows": [{"model": line} for line in lines if line]}, path.stem)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise GlocalError(f"{where}: expected TOML, got {error}; {_HELP}") from error
    return _portfolio(where, table, path.stem)


def _included() -> dict[str, Any]:
    return tomllib.loads(_FILE.read_text(encoding="utf-8"))


def _portfolio(where: str, table: Mapping[str, Any], name: str) -> Portfolio:
    """A portfolio from its table, checked."""
    _check_keys(where, table, _KEYS)
    for key in ("name", "note"):
        if not isinstance(table.get(key, ""), str):
            raise GlocalError(f"{where}: expected a text as {key}, got {short(table[key])}; put it in quotes")
    given = table.get("rows", [])
    if not isinstance(given, list) or not all(isinstance(row, dict) for row in given):
        raise GlocalError(f"{where}: expected tables [[rows]], got {short(given)}; {_HELP}")
    if not given:
        raise GlocalError(f"{where}: expected at least one model, got none; {_HELP}, a .txt file one name per line")
    rows = tuple(_row(f"{where}, row {number}", row, where) for number, row in enumerate(given, start=1))
    _check_duplicates(where, rows)
    _check_pairs(where, rows)
    return Portfolio(table.get("name", name), rows, table.get("note", ""))


def _row(where: str, row: Mapping[str, Any], source: str) -> Row:
    _check_keys(where, row, _ROW_KEYS)
    for key in _ROW_KEYS:
        if key in row and not (isinstance(row[key], str) and row[key].strip()):
            raise GlocalError(f"{where}: expected a text as {key}, got {short(row[key])}; write it, or leave it out")
    if "model" not in row:
        raise GlocalError(f"{where}: expected a model, got {short(dict(row))} without one; {_HELP}")
    model, kind = row["model"].strip(), row.get("kind")
    try:
        check_model(model, with_keywords=True)
    except GlocalError as error:
        raise GlocalError(f"{where}: {error}") from error
    if kind is not None and kind not in _KINDS:
        raise GlocalError(
            f"{where}: expected kind to be one of {', '.join(_KINDS)}, got {kind!r}{nearest(kind, _KINDS)}; "
            "without it, it comes from the layers"
        )
    reason = row.get("reason", f"named in {source.removeprefix('portfolio ')}").strip()
    return Row(model, kind or kind_of_model(model), reason, row.get("pair"))


def _check_keys(where: str, table: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in table:
        if key not in known:
            raise GlocalError(
                f"{where}: expected {', '.join(known)}, got the unknown key {key!r}{nearest(key, known)}; "
                "correct or remove it"
            )


def _check_duplicates(where: str, rows: Sequence[Row]) -> None:
    """A name without a tag is the model with the default tag."""
    seen: dict[str, str] = {}
    for row in rows:
        name, keywords = parse_model(row.model)
        cfg: Any = timm.get_pretrained_cfg(name)
        tag = f".{cfg.tag}" if cfg is not None and cfg.tag else ""
        same = spell_model(f"{name.partition('.')[0]}{tag}", keywords)
        if same in seen:
            also = "" if seen[same] == row.model else f" (also called {seen[same]})"
            raise GlocalError(f"{where}: expected each model once, got {row.model}{also} twice; remove one")
        seen[same] = row.model


def _check_pairs(where: str, rows: Sequence[Row]) -> None:
    for pair, count in Counter(row.pair for row in rows if row.pair is not None).items():
        kinds = sorted(row.kind for row in rows if row.pair == pair)
        if count != 2 or kinds != ["cnn", "transformer"]:
            raise GlocalError(
                f"{where}: expected a cnn and a transformer in pair {pair!r}, got {', '.join(kinds)}; "
                "name the pair in exactly these two rows"
            )


def kind_of_model(name: str) -> Kind:
    """The kind of a model by its layers, created without storage.

    Attention is known by the names of classes. A model of tokens without attention, such as an MLP-Mixer, counts as a
    Transformer.
    """
    model, keywords = parse_model(name)
    with torch.device("meta"):
        modules = [*timm.create_model(model, **keywords).modules()]
    names = {type(module).__name__ for module in modules}
    has_attention = any(_ATTENTION.search(name) and not _NO_ATTENTION.search(name) for name in names)
    convs = [module for module in modules if isinstance(module, nn.Conv2d) and module.kernel_size > module.stride]
    if len(convs) <= 1:  # without overlap it embeds patches
        return "transformer"
    return "mix" if has_attention else "cnn"
