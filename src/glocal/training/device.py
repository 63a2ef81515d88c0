"""The device that models run on."""

import torch

from glocal.errors import GlocalError


def resolve_device(name: str) -> str:
    """``auto``, or a device that torch can use here.

    Raises:
        GlocalError: for a device that torch does not know or this machine does not have.
    """
    usable = [
        *(["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))] if torch.cuda.is_available() else []),
        *(["mps"] if torch.backends.mps.is_available() else []),
        "cpu",
    ]
    if name == "auto":
        return usable[0]
    if name not in usable:
        raise GlocalError(f"device: expected auto or one of {', '.join(usable)} (what this machine has), got {name!r}")
    return name
