"""The rule from the needs of images to backbones.

It recommends what to *compare first*, not a winner. Needs are estimated by `glocal.recommend.need`. Convolution is
local and keeps detail, attention is global and smooths: Park and Kim 2022, https://arxiv.org/abs/2202.06709. A
hybrid of the two is claimed to beat either: BoTNet (Srinivas et al. 2021, https://arxiv.org/abs/2101.11605), CvT (Wu et
al. 2021, https://arxiv.org/abs/2103.15808), Conformer (Peng et al. 2021, https://arxiv.org/abs/2105.03889). The
reasons include results of the micro models on images with known needs: docs/results/probes.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from glocal.recommend.need import BLURRED, NEEDED, SHUFFLED, Estimate, Needs

LARGE_FROM = 96
"""Smallest side in pixels for full-size backbones; below it micro models, designed for 32 pixels."""

FindingKind = Literal["local", "global", "both", "either", "uncertain"]


@dataclass(frozen=True)
class Kind:
    """A kind of aggregation, and its backbones.

    Attributes:
        name: for tables.
        micro: backbone for small images.
        large: backbone for large ones, of 20 to 26 million parameters.
        source: of the architecture.
    """

    name: str
    micro: str
    large: str
    source: str

    def backbone(self, image_size: int) -> str:
        """The one for images of this side, pixels."""
        return self.large if image_size >= LARGE_FROM else self.micro


CONVOLUTION = Kind("convolution", "resnet_micro", "glocal_resnet50", "He et al. 2016")
ATTENTION = Kind("attention", "vit_micro", "glocal_vit_small_patch16_224", "Dosovitskiy et al. 2021")
STACKED = Kind("hybrid: convolution, then attention", "botnet_micro", "botnet50", "Srinivas et al. 2021")
INSIDE = Kind("hybrid: convolution inside attention", "cvt_micro", "cvt_13", "Wu et al. 2021")


@dataclass(frozen=True)
class Advice:
    """A backbone to compare, and why."""

    model: str
    kind: str
    reason: str
    source: str


@dataclass(frozen=True)
class Finding:
    """Conclusion from the needs.

    Attributes:
        kind: a row of `RULE`.
        sentence: in words, with the numbers.
    """

    kind: FindingKind
    sentence: str


RULE: Mapping[FindingKind, tuple[tuple[Kind, str], ...]] = {
    "local": (
        (CONVOLUTION, "small patches contain the information; resnet_micro solves the probe texture"),
        (STACKED, "shows whether attention after the same convolutions helps"),
    ),
    "global": (
        (STACKED, "attention joins parts over the image in one step; botnet_micro solves the probe arrangement"),
        (CONVOLUTION, "stacked convolutions may reach as far; resnet_micro solves the probe arrangement"),
        (ATTENTION, "joins the whole image from the first block on; but vit_micro fails the probe arrangement"),
    ),
    "both": (
        (STACKED, "details by convolution, layout by attention after it; botnet_micro solves the probe mix"),
        (INSIDE, "details and layout in every block"),
        (CONVOLUTION, "shows whether attention is worth its cost here; resnet_micro solves the probe mix"),
    ),
    "either": (
        (CONVOLUTION, "neither need is large: detail alone gives most of the accuracy"),
        (STACKED, "neither need is large: a hybrid has detail and layout"),
        (ATTENTION, "neither need is large: layout alone gives most of the accuracy"),
    ),
    "uncertain": (
        (CONVOLUTION, "local: the need is uncertain, so compare each kind"),
        (STACKED, "hybrid: the need is uncertain, so compare each kind"),
        (ATTENTION, "global: the need is uncertain, so compare each kind"),
    ),
}
"""By finding: what to compare first, and why. That a micro model "solves" or "fails" a probe (`glocal.data.probes`) is
measured: accuracy above 95 %, or at chance, after a few epochs from scratch
(docs/results/probes.json)."""


def find(needs: Needs) -> Finding:
    """The row of `RULE` for the needs; "uncertain" if an interval contains the threshold."""
    if needs.detail is None or needs.layout is None:
        return Finding(
            "uncertain",
            "A small model is no better than chance after this training, so the needs of these images are unknown",
        )
    detail, layout = (_is_needed(need) for need in (needs.detail, needs.layout))
    numbers = (
        f"a small model loses {_with_interval(needs.layout)} of its accuracy above chance when patches of "
        f"{SHUFFLED.size} are shuffled and {_with_interval(needs.detail)} when images are blurred by {BLURRED.size}"
    )
    if detail is None or layout is None:
        unsure = [name for name, known in (("layout", layout), ("detail", detail)) if known is None]
        verb = "is" if len(unsure) == 1 else "are"
        return Finding("uncertain", f"Whether {' and '.join(unsure)} {verb} needed is uncertain; {numbers}")
    kind: FindingKind = {
        (True, False): "local",
        (False, True): "global",
        (True, True): "both",
        (False, False): "either",
    }[detail, layout]  # type: ignore[assignment]
    words = {
        "local": "These images need local information: detail, but not its position",
        "global": "These images need global information: the layout of parts, but not their detail",
        "both": "These images need local and global information, detail and layout",
        "either": "These images depend little on detail or layout: either alone gives most of the accuracy",
    }[kind]
    return Finding(kind, f"{words}; {numbers}")


def advise(finding: Finding, image_size: int) -> tuple[Advice, ...]:
    """What to compare first on images of this side, pixels."""
    return tuple(
        Advice(kind.backbone(image_size), kind.name, reason, kind.source) for kind, reason in RULE[finding.kind]
    )


def _is_needed(need: Estimate) -> bool | None:
    """None if the interval contains the threshold."""
    if need.low > NEEDED:
        return True
    return False if need.high < NEEDED else None


def _with_interval(need: Estimate) -> str:
    mean, low, high = (round(100 * value) for value in (need.mean, need.low, need.high))
    return f"{mean} % ({low} to {high})"
