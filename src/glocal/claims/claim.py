"""A published claim as an experiment: arms that differ in one keyword, their metric, and the expected differences."""

from dataclasses import dataclass
from typing import Any, Literal

from glocal.models.names import spell_model

Expected = Literal["more", "less", "not less", "equal"]
"""First arm against second: more (or less) by over the margin, less by the margin at most, or within it either way."""


@dataclass(frozen=True)
class Arm:
    """One side of an experiment.

    Attributes:
        name: for the pages.
        models: trained with every seed, as in `glocal.models.names`; several count by their mean.
        fraction: of the training set.
        reading: which value of the metric, if it has several per trained model; else "".
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
    """The expected difference of two arms of a claim.

    Attributes:
        first: name of an arm.
        second: name of another arm; None for the number 0.
        expected: see `Expected`.
        margin: in the unit of the compared values; smaller differences do not count.
        of: "value", the metric of the claim; or "macs", the relative extra cost of the first arm.
    """

    first: str
    second: str | None
    expected: Expected
    margin: float = 0.0
    of: Literal["value", "macs"] = "value"


@dataclass(frozen=True)
class Published:
    """A published figure, for orientation; ``second_hand`` if it was not read in its source."""

    text: str
    second_hand: bool = False


@dataclass(frozen=True)
class Claim:
    """A claim and the experiment that tests it.

    Attributes:
        id: on the command line.
        sentence: the claim, for readers who do not know the paper.
        background: explains its terms.
        differ: the difference between the arms.
        measure: its metric: a key of `glocal.claims.measures.CLAIM_METRICS`.
        arms: in the order of the pages.
        comparisons: the claim holds if all of them do. Arms without one are shown for comparison.
        source: paper, section or table.
        url: of the paper.
        published: published figures.
        note: limitations and choices.
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
        """Model and fraction of the runs that the claim needs with every seed, without duplicates."""
        return tuple(dict.fromkeys((model, arm.fraction) for arm in self.arms for model in arm.models))
