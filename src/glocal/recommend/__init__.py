"""Which backbones to compare first: what images need, probed with a small reference, and what candidates cost."""

from glocal.recommend.job import DEFAULT_BUDGET, check_request, recommend
from glocal.recommend.need import ask_references, needs
from glocal.recommend.pictures import pictures
from glocal.recommend.rule import RULE, advise, find

__all__ = [
    "DEFAULT_BUDGET",
    "RULE",
    "advise",
    "ask_references",
    "check_request",
    "find",
    "needs",
    "pictures",
    "recommend",
]
