"""The exceptions that public doors raise for a user's mistake."""

import difflib
from collections.abc import Iterable, Sequence


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
