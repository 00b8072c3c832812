"""Budgets of entries by rank: Zipf's law fitted to how often latents fire, in whole numbers.

Ayonrinde (2024) sees a sparse code as a budget of M edges between N tokens and F features. Where
each feature has a budget of its own, it follows the law that densities of trained dictionaries
follow, w_r = (r + b)^-a for rank r from 1 (Zipf-Mandelbrot), except at the dead tail. The paper
gives no constants and no code; the fit (least squares in log-log on ranks that fire, with a bounded
exponent) and the rounding (largest remainder, between one entry and one for each row) are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecraft.core.errors import BudgetError, InvalidValue

FEWEST_RANKS = 3
"""Ranks that determine exponent, offset and scale."""
STEEPEST = 8.0
"""Largest exponent of a fit. Trained dictionaries have about 1; a tail that falls off exponentially
would need an infinite one, and weights of a large one are too small for floating numbers."""
# Offsets on a coarse grid, then on a finer one around the best, again and again.
_TRIED, _REFINED, _ROUNDS = 24, 9, 6


@dataclass(frozen=True, kw_only=True)
class ZipfBudget:
    """Zipf-Mandelbrot: what ranks 1, 2, ... get is in proportion to (rank + offset)^-exponent.

    Args:
        exponent: At least 0; 0 gives all ranks the same.
        offset: At least 0; flattens the first ranks.

    Example:
        >>> ZipfBudget().weights(3)
        tensor([1.0000, 0.5000, 0.3333], dtype=torch.float64)
        >>> ZipfBudget().counts(3, total=11, highest=10)
        tensor([6, 3, 2])

    Reference:
        Ayonrinde, 2024, arXiv 2411.02124.
    """

    exponent: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        for name in ("exponent", "offset"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 <= value < math.inf):
                raise InvalidValue(f"{name}={value!r} is not allowed: give a number of at least 0")

    @classmethod
    def fit(cls, density: Tensor) -> ZipfBudget:
        """Returns the law nearest to these densities in log-log, by least squares.

        Args:
            density: (features,), how often each fires; those that never do are left out. A running
                mean must be set to zero where a feature has fallen silent (`FiringCounter` does):
                what is left of it is no density, and bends the law.

        Raises:
            InvalidValue: If fewer than three features fire.
        """
        live = density.double()[density > 0].sort(descending=True).values.cpu()
        if len(live) < FEWEST_RANKS:
            raise InvalidValue(
                f"{len(live)} of {len(density)} features fire, and a law of ranks needs at least "
                f"{FEWEST_RANKS}: give densities after more training, or a uniform budget"
            )
        logs = live.log()
        tried = torch.cat([torch.zeros(1), torch.logspace(-2, math.log10(10 * len(live)), _TRIED)])
        for _ in range(_ROUNDS):
            exponents, errors = _lines(logs, tried)
            best = int(errors.argmin())
            offset, exponent = float(tried[best]), float(exponents[best])
            low, high = tried[max(best - 1, 0)], tried[min(best + 1, len(tried) - 1)]
            tried = torch.linspace(float(low), float(high), _REFINED)
        return cls(exponent=exponent, offset=offset)

    def weights(self, features: int) -> Tensor:
        """Returns float64 (features,), (r + offset)^-exponent for ranks r from 1."""
        ranks = torch.arange(1, features + 1, dtype=torch.float64)
        return (ranks + self.offset) ** -self.exponent

    def counts(self, features: int, total: int, highest: int) -> Tensor:
        """Returns int64 (features,) counts by rank, from 1 to `highest`, that sum to the total."""
        return largest_remainder(self.weights(features), total, lowest=1, highest=highest)

    def densities(self, features: int, k: float) -> Tensor:
        """Returns float64 (features,), the expected share of rows by rank; it sums to k.

        Args:
            features: How many.
            k: Mean number of entries of a row.
        """
        return clipped_shares(self.weights(features), k, lowest=0.0, highest=1.0)


def largest_remainder(weights: Tensor, total: int, *, lowest: int = 0, highest: int) -> Tensor:
    """Returns whole numbers in proportion to the weights that sum to the total exactly.

    The quotas (`clipped_shares`) are rounded down, and what is left goes to the largest remainders,
    of equal ones to the first.

    Args:
        weights: (n,), positive.
        total: What they sum to.
        lowest: Each gets at least this much.
        highest: And at most this much.

    Returns:
        int64 (n,), on the CPU.

    Raises:
        BudgetError: If no such numbers exist.

    Example:
        >>> largest_remainder(torch.tensor([5.0, 3.0, 1.0]), 4, highest=9)
        tensor([2, 1, 1])
    """
    quotas = clipped_shares(weights, total, lowest=lowest, highest=highest)
    # A quota that is a whole number but for rounding is that number.
    counts = (quotas + 1e-9).floor().long()
    left = total - int(counts.sum())
    order = (quotas - counts).argsort(descending=True, stable=True)
    counts[order[:left]] += 1
    return counts


def clipped_shares(weights: Tensor, total: float, *, lowest: float, highest: float) -> Tensor:
    """Returns clip(c * weights, lowest, highest) with the one c for which it sums to the total.

    Args:
        weights: (n,), positive and finite.
        total: From n * lowest to n * highest.
        lowest: Bound of each.
        highest: Bound of each.

    Returns:
        float64 (n,), on the CPU.

    Raises:
        InvalidValue: If weights are not positive and finite.
        BudgetError: If the bounds do not allow the total.
    """
    weights = weights.double().cpu()
    if not bool(((weights > 0) & torch.isfinite(weights)).all()):
        raise InvalidValue("weights of a budget must be positive and finite")
    n = len(weights)
    if not n * lowest <= total <= n * highest:
        raise BudgetError(
            f"a budget of {total:g} for {n} features cannot be met with {lowest:g} to {highest:g} "
            f"for each: it must be from {n * lowest:g} to {n * highest:g}"
        )
    shares, free = torch.empty_like(weights), torch.ones(n, dtype=torch.bool)
    while bool(free.any()):
        scale = (total - float(shares[~free].sum())) / float(weights[free].sum())
        wanted = (scale * weights).clamp(lowest, highest)
        change = (wanted - scale * weights).where(free, 0.0)
        excess = float(change.sum())
        shares[free] = wanted[free]
        # The side on which more was cut off holds in the end too: those bounds are fixed first.
        fixed = change > 0 if excess > 0 else change < 0 if excess < 0 else free
        if not bool(fixed.any()):
            break
        free &= ~fixed
    return shares


def ranks_of(density: Tensor) -> Tensor:
    """Returns int64 (features,), each feature's rank from 0, the densest first; ties by index."""
    order = density.argsort(descending=True, stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=order.device)
    return ranks


def under_use(density: Tensor, expected: Tensor) -> Tensor:
    """Returns clip(1 - density / expected, 0, 1): 1 for a dead feature, 0 for one on target.

    Args:
        density: (features,), the share of rows in which each fires.
        expected: (features,), positive.
    """
    return (1 - density / expected).clamp(0, 1)


def _lines(logs: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the exponent and the squared error of the best law, for each offset (offsets,)."""
    ranks = torch.arange(1, len(logs) + 1, dtype=torch.float64)
    x = torch.log(ranks + offsets.double()[:, None])
    x, y = x - x.mean(1, keepdim=True), logs - logs.mean()
    slopes = ((x @ y) / x.square().sum(1)).clamp(-STEEPEST, 0.0)
    return -slopes, (y - slopes[:, None] * x).square().sum(1)
