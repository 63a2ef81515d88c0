"""A stand-in for a decoder that takes its process down."""

import os

from glocal.data.scan import Scanned


def look(path: str, culprit: str) -> Scanned:
    if path == culprit:
        os._exit(11)
    return Scanned(None)
