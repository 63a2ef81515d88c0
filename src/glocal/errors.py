"""The exceptions that public doors raise for a user's mistake."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


class GlocalError(ValueError):
    """A mistake that the person at the door can mend: what was expected, what came, what to do.

    The command line prints it as one message and exits with code 2, without a traceback.
    """


class CheckpointError(GlocalError):
    """A file of weights that cannot be used: damaged, not what it says it is, or not safe to read."""


def check_choice(what: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a value that is none of the choices.

    Raises:
        GlocalError: naming them, and the nearest.
    """
    if value not in choices:
        raise GlocalError(f"{what}: expected one of {', '.join(choices)}, got {value!r}{nearest(value, choices)}")


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """A hint for an unknown name: ``"; nearest: a, b"``, or nothing where no known name is like it."""
    close = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    return f"; nearest: {', '.join(close)}" if close else ""


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def short(value: Any) -> str:
    """A value of a file as messages show it, in 80 characters at most."""
    text = repr(value) if isinstance(value, str | int | float | bool | None) else kind_of(value)
    if isinstance(value, list) and len(value) <= 8 and all(isinstance(v, int | float) for v in value):
        text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def kind_of(value: Any) -> str:
    """What JSON calls a value: ``an object``, ``a list``, ..."""
    return {dict: "an object", list: "a list", str: "a text", type(None): "nothing"}.get(type(value), "a number")
