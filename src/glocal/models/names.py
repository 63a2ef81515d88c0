"""A model with keywords as one string: ``cvt_micro:projection=linear:kv_stride=1``.

It is accepted wherever a timm name is, so a comparison can train several variants of a model.
"""

import ast
import re
from collections.abc import Mapping
from typing import Any

from glocal.errors import GlocalError

_KEYWORD = re.compile(r"([A-Za-z_]\w*)=(.+)")
_WORDS = {"true": True, "false": False}
"""As YAML writes them."""


def parse_model(text: str) -> tuple[str, dict[str, Any]]:
    """A string -> the name and its keywords: numbers, True, False, None, tuples such as (3,4), or else text.

    Raises:
        GlocalError: if a part after a colon is not ``keyword=value``, or a keyword is repeated.
    """
    name, *parts = text.split(":")
    keywords: dict[str, Any] = {}
    for part in parts:
        match = _KEYWORD.fullmatch(part.strip())
        if match is None or match[1] in keywords:
            reason = "given twice" if match else "expected keyword=value, such as cvt_micro:projection=linear"
            raise GlocalError(f"model {text!r}: {part!r}: {reason}")
        keywords[match[1]] = _value(match[2].strip())
    return name.strip(), keywords


def split_models(text: str) -> list[str]:
    """Split a comma-separated list; a comma inside parentheses is part of a value."""
    words, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth <= 0:
            words.append("")
        else:
            words[-1] += letter
    return [word.strip() for word in words if word.strip()]


def spell_model(name: str, keywords: Mapping[str, Any]) -> str:
    """Name and keywords -> one string, independent of their order; the inverse of `parse_model`."""
    parts = [f"{key}={_spelt(value)}" for key, value in sorted(keywords.items())]
    return ":".join([name, *parts])


def _value(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _spelt(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value).replace(" ", "")
    if ":" in text or _value(text.strip()) != value:
        raise GlocalError(f"keyword: expected a number, True, False, None, a tuple or a plain text, got {value!r}")
    return text
