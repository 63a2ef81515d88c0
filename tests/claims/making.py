"""Claims that a small experiment decides, and what planted measurements say of those of the catalogue."""

import dataclasses

import numpy as np

from glocal.claims import Claim, Comparison
from glocal.claims.claim import arm
from glocal.claims.measures import Measurement

SOURCE = {"source": "nobody 2026, §0", "url": "https://example.org/"}


ABOVE = (Comparison("sees", "blind", "more"),)


def claim(name="sees", arms=None, comparisons=ABOVE, measure="top1", **changes) -> Claim:
    """That a CNN tells drawings apart better than a Transformer of one patch, which has three features."""
    arms = arms or (arm("sees", "resnet_micro"), arm("blind", "vit_micro", patch_size=32, depth=1, dim=3, num_heads=1))
    words = {"sentence": "A CNN sees.", "background": "It looks.", "differ": "The network.", **SOURCE, **changes}
    return Claim(id=name, measure=measure, arms=tuple(arms), comparisons=tuple(comparisons), **words)


def swapped(claim: Claim, first: str, second: str) -> Claim:
    """The claim with what two of its arms are exchanged; names, and so what is expected of them, stay."""
    one, other = claim.arm(first), claim.arm(second)
    exchanged = {
        first: dataclasses.replace(other, name=first),
        second: dataclasses.replace(one, name=second),
    }
    return dataclasses.replace(claim, arms=tuple(exchanged.get(arm.name, arm) for arm in claim.arms))


def planted(claim: Claim, gap: float = 0.2, seeds: int = 3, units: int = 2000) -> Measurement:
    """Measurements by which the first arm of each comparison is ahead by ``gap`` (as expected), with noise.

    Rates of right answers where images are measured; of arms that should be equal the same.
    """
    levels = dict.fromkeys((arm.name for arm in claim.arms), 0.0)
    for _ in claim.arms:  # until every arm stands above those that it should be above
        for part in claim.comparisons:
            if part.of == "value" and part.second is not None:
                equal = part.expected == "equal"
                ahead = levels[part.second] + (0.0 if equal else gap + part.margin)
                levels[part.first] = max(levels[part.first], ahead)
                levels[part.second] = levels[part.first] if equal else levels[part.second]
    for part in claim.comparisons:
        if part.second is None:
            levels[part.first] = gap if part.expected == "more" else -gap
    rng = np.random.default_rng(0)
    if claim.measure == "costs":
        return Measurement(
            {name: np.full((1, 4), 0.1 + level) for name, level in levels.items()}, paired=True, exact=True
        )
    if claim.measure in ("top1", "heads"):
        luck = rng.random((seeds, units))
        chance = {name: 0.1 + level for name, level in levels.items()}
        return Measurement(
            {name: (luck < rate).astype(float) for name, rate in chance.items()}, claim.measure == "heads"
        )
    noise = {name: 0.05 * rng.standard_normal((seeds, 8)) for name in levels}
    return Measurement({name: level + noise[name] for name, level in levels.items()}, claim.measure == "places")


def macs(claim: Claim) -> dict[str, float]:
    """Costs by which each comparison of multiply-accumulates holds."""
    costs = {arm.name: 1e6 for arm in claim.arms}
    for part in claim.comparisons:
        if part.of == "macs" and part.expected == "more":
            costs[part.first] = 2e6
    return costs
