"""A published claim as an experiment: arms that differ in a keyword, what is measured on them, and what is expected."""

from dataclasses import dataclass
from typing import Any, Literal

from glocal.models.names import spell_model

Expected = Literal["more", "less", "not less", "equal"]
"""Of the first arm against the second: more, or less, by more than the margin; not less by more than it; neither."""


@dataclass(frozen=True)
class Arm:
    """One side of an experiment.

    Attributes:
        name: what the pages call it.
        models: what is trained, from every seed, as words (`glocal.models.names`); of several the mean counts.
        fraction: of the training images.
        reading: which of the values that the measurement takes from a trained model; "" where there is one.
    """

    name: str
    models: tuple[str, ...] = ()
    fraction: float = 1.0
    reading: str = ""


def arm(name: str, model: str, *, fraction: float = 1.0, reading: str = "", **keywords: Any) -> Arm:
    """An arm of one model with its keywords."""
    return Arm(name, (spell_model(model, keywords),), fraction, reading)


@dataclass(frozen=True)
class Comparison:
    """What a claim says of two of its arms.

    Attributes:
        first: name of an arm.
        second: name of another one; None for the number 0.
        expected: see `Expected`.
        margin: in the unit of what is compared; differences up to it do not count.
        of: "value", what the claim measures; or "macs", by which share the first arm costs more than the second.
    """

    first: str
    second: str | None
    expected: Expected
    margin: float = 0.0
    of: Literal["value", "macs"] = "value"


@dataclass(frozen=True)
class Published:
    """A figure of a paper, for orientation; ``second_hand`` where it was not read off its source."""

    text: str
    second_hand: bool = False


@dataclass(frozen=True)
class Claim:
    """A claim and the experiment that tests it.

    Attributes:
        id: what the command line calls it.
        sentence: the claim, for one who has not read the paper.
        background: what its words mean.
        differ: what the arms differ in.
        measure: how it is measured: a name of `glocal.claims.measures.CLAIM_METRICS`.
        arms: in the order in which they are shown.
        comparisons: the claim holds if all of them do. Arms without one are shown beside.
        source: paper, section or table.
        url: of the paper.
        published: figures.
        note: what else a reader must know.
    """

    id: str
    sentence: str
    background: str
    differ: str
    measure: str
    arms: tuple[Arm, ...]
    comparisons: tuple[Comparison, ...]
    source: str
    url: str
    published: tuple[Published, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        assert len(set(names)) == len(names)
        assert all({c.first, c.second} <= {*names, None} for c in self.comparisons)

    def arm(self, name: str) -> Arm:
        """The arm of this name."""
        return next(arm for arm in self.arms if arm.name == name)

    def trained(self) -> tuple[tuple[str, float], ...]:
        """Model and fraction of each run that the claim needs from every seed, each once."""
        return tuple(dict.fromkeys((model, arm.fraction) for arm in self.arms for model in arm.models))
