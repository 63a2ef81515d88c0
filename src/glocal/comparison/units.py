"""Quantities with a unit, as the command line takes them: 10ms, 20M, 40MB."""

import math
import re
from collections.abc import Mapping

from glocal.errors import GlocalError

TIMES = {"ms": 1.0, "s": 1000.0}
"""In milliseconds."""
COUNTS = {"K": 1e3, "M": 1e6, "B": 1e9}
SIZES = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
"""In bytes."""

_QUANTITY = re.compile(r"\s*([+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|nan|inf))\s*([a-z]*)\s*", re.I)


def parse_quantity(option: str, text: str, units: Mapping[str, float]) -> float:
    """A number and its unit -> the number in the smallest of the units; upper and lower case are the same.

    A number without a unit is refused: 10 might be milliseconds or seconds, 20 might be thousands or millions.

    Args:
        option: its name, for messages.
        text: such as ``10ms``, ``2.5 MB``.
        units: `TIMES`, `COUNTS` or `SIZES`.

    Raises:
        GlocalError: if the text is anything but a positive number and one of the units.
    """
    known = list(units)
    example = {"ms": "10ms", "K": "20M", "kB": "40MB"}[known[0]]
    expected = f"{option}: expected a positive number and its unit ({', '.join(known)}), such as {example}"
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise GlocalError(f"{expected}; got {text!r}")
    number, unit = float(match[1]), match[2]
    if not (math.isfinite(number) and number > 0):
        raise GlocalError(f"{expected}; got {text!r}")
    if not unit:
        raise GlocalError(
            f"{expected}; got {text!r} without a unit: write {match[1]}{known[0]} or {match[1]}{known[1]}"
        )
    scale = {name.lower(): factor for name, factor in units.items()}.get(unit.lower())
    if scale is None:
        raise GlocalError(f"{expected}; got {text!r}: {unit} is not one of the units")
    if not math.isfinite(number * scale):
        raise GlocalError(f"{expected}; got {text!r}, which is too large")
    return number * scale
