"""Training budget in epochs, seconds or floating-point operations; the same for all compared models."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from glocal.errors import GlocalError

FLOP_PER_MAC = 2
FORWARD_AND_BACKWARD = 3
"""A backward pass costs two forward passes: gradients of inputs and of weights (Kaplan et al. 2020, §2.1)."""

_FORM = re.compile(r"(\d+(?:\.\d*)?(?:e\+?\d+)?)\s*(ep|s|flop)", re.IGNORECASE)
_EXAMPLES = "5ep (epochs), 90s (seconds of training) or 2e14flop (floating-point operations of training)"


@dataclass(frozen=True)
class Budget:
    """An amount of training.

    Attributes:
        amount: above 0.
        unit: ``ep`` epochs, ``s`` seconds of training (evaluation not counted), ``flop`` floating-point operations.
    """

    amount: float
    unit: Literal["ep", "s", "flop"]

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Read ``5ep``, ``90s`` or ``2e14flop``.

        Raises:
            GlocalError: for anything else, and for an amount that is not above 0.
        """
        match = _FORM.fullmatch(text.strip())
        amount = float(match[1]) if match else 0.0
        if match is None or not 0 < amount < math.inf:
            raise GlocalError(f"budget: expected an amount above 0 with its unit, such as {_EXAMPLES}; got {text!r}")
        return cls(amount, match[2].lower())  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{self.amount:g}{self.unit}"

    def steps(self, num_images: int, steps_per_epoch: int, macs: int) -> int | None:
        """Optimizer steps within the budget, at least one; None for a budget in seconds.

        Args:
            num_images: images of the training set.
            steps_per_epoch: batches that it is cut into.
            macs: multiply-accumulates of a forward pass for one image.
        """
        if self.unit == "s":
            return None
        epochs = self.amount if self.unit == "ep" else self.amount / (training_flop(macs) * num_images)
        return max(1, round(epochs * steps_per_epoch))


def training_flop(macs: int, num_images: float = 1) -> float:
    """Floating-point operations to train on images: 3 (forward and backward) x 2 (per multiply-accumulate) x MACs."""
    return FORWARD_AND_BACKWARD * FLOP_PER_MAC * macs * num_images
