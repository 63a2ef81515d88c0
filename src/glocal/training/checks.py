"""Checks of settings, once, where a configuration is built: their types by the annotations, their values by rules."""

import math
from dataclasses import fields
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from glocal.errors import GlocalError, check_choice


def check_types(part: Any) -> None:
    """Check the fields of a dataclass that are flags, numbers, strings, tuples of them, or one of a Literal.

    Raises:
        GlocalError: naming the field.
    """
    for setting in fields(part):
        value, kind = getattr(part, setting.name), setting.type
        if isinstance(kind, UnionType):
            kinds = [one for one in get_args(kind) if one is not type(None)]
            if value is None or len(kinds) > 1:
                continue
            kind = kinds[0]
        if get_origin(kind) is Literal and isinstance(value, str):
            check_choice(setting.name, value, get_args(kind))
        elif (expected := _mismatch(kind, value)) is not None:
            raise GlocalError(f"{setting.name}: expected {expected}, got {value!r}")


def check_values(part: Any, *rules: tuple[str, bool, str]) -> None:
    """Check rules (field, whether it holds, what is expected).

    Raises:
        GlocalError: for the first that does not hold.
    """
    for name, holds, expected in rules:
        if not holds:
            raise GlocalError(f"recipe: {name} must be {expected}, got {getattr(part, name)!r}")


def _mismatch(kind: Any, value: Any) -> str | None:
    """What an annotation expects, if the value is not of it."""
    if kind is bool:
        return None if isinstance(value, bool) else "True or False"
    if kind is int:
        return None if isinstance(value, Integral) and not isinstance(value, bool) else "a whole number"
    if kind is float:  # NaN is in no range, so the rules refuse it
        finite = isinstance(value, Real) and not isinstance(value, bool) and not math.isinf(value)
        return None if finite else "a finite number"
    if kind is str or get_origin(kind) is Literal:
        return None if isinstance(value, str) else "a string"
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        good = isinstance(value, list | tuple) and all(_mismatch(item, one) is None for one in value)
        return None if good else f"a tuple, each of it {_mismatch(item, None)}"
    return None
