"""Published claims as experiments: arms, comparisons, sources, and verdicts on your images."""

from glocal.claims.catalogue import CLAIMS, choose
from glocal.claims.claim import Arm, Claim, Comparison, Published
from glocal.claims.experiment import BUDGETS, FILE, read_results, run_claims
from glocal.claims.results import describe

__all__ = [
    "BUDGETS",
    "CLAIMS",
    "FILE",
    "Arm",
    "Claim",
    "Comparison",
    "Published",
    "choose",
    "describe",
    "read_results",
    "run_claims",
]
