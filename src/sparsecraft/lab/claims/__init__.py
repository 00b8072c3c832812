"""Claims: each paper's central statement, measured at small scale and judged in one word."""

from __future__ import annotations

from sparsecraft.lab.claims.catalog import claim_numbers, load_claim
from sparsecraft.lab.claims.claim import BUDGETS, Budget, Claim, Contrast, FullScale
from sparsecraft.lab.claims.runner import reproduce, run_claim

__all__ = [
    "BUDGETS",
    "Budget",
    "Claim",
    "Contrast",
    "FullScale",
    "claim_numbers",
    "load_claim",
    "reproduce",
    "run_claim",
]
