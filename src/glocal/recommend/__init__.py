"""Which backbones to compare first: needs of the images, by a small reference model, and costs of candidates."""

from glocal.recommend.job import DEFAULT_BUDGET, check_request, recommend
from glocal.recommend.need import needs, train_references
from glocal.recommend.pictures import pictures
from glocal.recommend.rule import RULE, advise, find

__all__ = [
    "DEFAULT_BUDGET",
    "RULE",
    "advise",
    "check_request",
    "find",
    "needs",
    "pictures",
    "recommend",
    "train_references",
]
