"""A published claim as an experiment: arms that differ in a keyword, a metric, and the expected differences."""

from dataclasses import dataclass
from typing import Any, Literal

from glocal.models.names import spell_model

Expected = Literal["more", "less", "not less", "equal"]
"""Of the first arm against the second: more, or less, by more than the margin; not less by more than it; neither."""


@dataclass(frozen=True)
class Arm:
    """One side of an experiment.

    Attributes:
        name: on the pages.
        models: trained from every seed, with keywords (`glocal.models.names`); several are averaged.
        fraction: of the training images.
        reading: one of several values measured on a trained model; "" if there is only one.
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
    """A claimed relation between two arms.

    Attributes:
        first: name of an arm.
        second: name of another arm; None for 0.
        expected: see `Expected`.
        margin: smaller differences do not count.
        of: "value" for the metric of the claim, or "macs" for the relative extra cost of the first arm.
    """

    first: str
    second: str | None
    expected: Expected
    margin: float = 0.0
    of: Literal["value", "macs"] = "value"


@dataclass(frozen=True)
class Published:
    """A published number, for orientation; ``second_hand`` if not taken from its source."""

    text: str
    second_hand: bool = False


@dataclass(frozen=True)
class Claim:
    """A claim and the experiment that tests it.

    Attributes:
        id: on the command line.
        sentence: the claim, for readers who do not know the paper.
        background: explanation of its terms.
        differ: the difference between the arms.
        measure: name of its metric, in `glocal.claims.measures.METRICS`.
        arms: in display order.
        comparisons: the claim holds if all of them do. Arms without one are shown for reference.
        source: paper, section or table.
        url: of the paper.
        published: numbers of the paper.
        note: further remarks.
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
