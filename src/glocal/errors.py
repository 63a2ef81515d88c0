"""Exceptions for user errors."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


class GlocalError(ValueError):
    """A user error: states what was expected, what was given and what to do.

    The command line prints it as one message and exits with code 2, without a traceback.
    """


class CheckpointError(GlocalError):
    """An unusable checkpoint file: damaged, of another format than its name says, or unsafe to load."""


def check_choice(what: str, value: str, choices: Sequence[str]) -> None:
    """Check that a value is one of the choices.

    Raises:
        GlocalError: for other values; lists the choices and the nearest one.
    """
    if value not in choices:
        raise GlocalError(f"{what}: expected one of {', '.join(choices)}, got {value!r}{nearest(value, choices)}")


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """A hint for an unknown name: ``"; nearest: a, b"``, or "" if no known name is similar."""
    close = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    return f"; nearest: {', '.join(close)}" if close else ""


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def short(value: Any) -> str:
    """A value from a file for a message, at most 80 characters."""
    text = repr(value) if isinstance(value, str | int | float | bool | None) else kind_of(value)
    if isinstance(value, list) and len(value) <= 8 and all(isinstance(v, int | float) for v in value):
        text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def kind_of(value: Any) -> str:
    """The JSON type of a value: ``an object``, ``a list``, ..."""
    return {dict: "an object", list: "a list", str: "a text", type(None): "nothing"}.get(type(value), "a number")
