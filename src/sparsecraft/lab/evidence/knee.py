"""The knee of a score-against-sparsity curve: the essential sparsity of Jaiswal et al.

The paper prunes a pre-trained model once by magnitude, fine-tunes it, and finds that the score
stays within 1 % of dense up to a knee and falls much faster beyond it. It reads the knee off a
plot; here two rules find it. The tolerance rule gives the sparsity at which the score first leaves
the tolerance, and the curvature rule the point farthest above the chord of the curve; the slopes
before and after that point say whether there is a knee at all, since an evenly falling curve also
leaves every tolerance somewhere.

Reference:
    Jaiswal et al., 2023, arXiv 2306.03805.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsecraft.core.errors import InvalidValue
from sparsecraft.lab.evidence.paired import (
    Interval,
    Statistic,
    check_level,
    percentile_interval,
    resample,
)

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Knee:
    """Where a curve leaves the tolerance, where it bends, and how sharply.

    Attributes:
        sparsity: Largest sparsity before the score first leaves the tolerance, interpolated.
        beyond_grid: Whether the score never leaves it, so that `sparsity` is only the last one
            tried.
        bend: The sparsity tried that lies farthest above the chord of the curve.
        slope_before: Score lost for each unit of sparsity, from dense to the bend.
        slope_after: The same from the bend to the last sparsity.
        has_knee: Whether the score falls beyond the tolerance and the slopes differ enough.
        tolerance: The loss allowed.
        relative: Whether the tolerance is a fraction of the dense score.
    """

    sparsity: float
    beyond_grid: bool
    bend: float
    slope_before: float
    slope_after: float
    has_knee: bool
    tolerance: float
    relative: bool

    @property
    def slope_ratio(self) -> float:
        """Slope after the bend over slope before it; inf where nothing is lost before it."""
        if self.slope_before > 0:
            return max(self.slope_after, 0.0) / self.slope_before
        return math.inf if self.slope_after > 0 else 0.0

    def describe(self) -> str:
        """Returns the finding in one sentence."""
        allowed = f"{self.tolerance:.3g}" + (" of the dense score" if self.relative else "")
        if self.beyond_grid:
            return (
                f"no knee up to sparsity {self.sparsity:.2f}, the last one tried: "
                f"the score stays within {allowed}"
            )
        verdict = "a knee" if self.has_knee else "no knee"
        return (
            f"{verdict}: within {allowed} up to sparsity {self.sparsity:.2f}, "
            f"farthest from a straight line at {self.bend:.2f}, "
            f"slope {self.slope_before:.3g} before and {self.slope_after:.3g} after "
            f"(ratio {self.slope_ratio:.2g})"
        )


@dataclass(frozen=True, kw_only=True)
class KneeSpread:
    """Knees of several seeds: the mean and standard deviation of their sparsity.

    Attributes:
        mean: Mean of the knees' sparsity.
        sd: Sample standard deviation; nan for a single seed.
        knees: The knee of each curve, in the order given.
    """

    mean: float
    sd: float
    knees: tuple[Knee, ...]


def essential_sparsity(
    ratios: ArrayLike,
    scores: ArrayLike,
    tolerance: float = 0.01,
    higher_is_better: bool = True,
    relative: bool = True,
    *,
    sharp: float = 3.0,
) -> Knee:
    """Returns the knee of a score-against-sparsity curve.

    A perplexity explodes, and its chord then bends at the last point but one: give its logarithm.

    Args:
        ratios: (n,) sparsities from 0 upwards, below 1, n at least 4.
        scores: (n,) the score at each sparsity.
        tolerance: Loss allowed, at least 0.
        higher_is_better: False for losses and errors.
        relative: Whether the tolerance is a fraction of the dense score.
        sharp: Smallest ratio of the slopes after and before the bend that makes a knee.

    Raises:
        InvalidValue: the curve lacks sparsity 0, is unsorted, has doubles, fewer than 4 points or a
            score that is not finite; or an argument is out of range.

    Example:
        >>> knee = essential_sparsity([0, 0.2, 0.4, 0.6, 0.8], [1.0, 1.0, 1.0, 0.5, 0.0])
        >>> knee.bend, round(knee.sparsity, 3), knee.has_knee
        (0.4, 0.404, True)
    """
    grid, values = _curve(ratios, scores)
    gains = values if higher_is_better else -values
    sparsity = _first_crossing(grid, gains, tolerance, relative)
    chord = gains[0] + (gains[-1] - gains[0]) * grid / grid[-1]
    # A perpendicular distance is the vertical one times a constant, so the axes need no scaling.
    at = 1 + int(np.argmax((gains - chord)[1:-1]))
    before = (gains[0] - gains[at]) / grid[at]
    after = (gains[at] - gains[-1]) / (grid[-1] - grid[at])
    falls = bool(gains[-1] < _limit(gains[0], tolerance, relative))
    return Knee(
        sparsity=float(grid[-1] if sparsity is None else sparsity),
        beyond_grid=sparsity is None,
        bend=float(grid[at]),
        slope_before=float(before),
        slope_after=float(after),
        has_knee=bool(falls and after > 0 and after >= sharp * before),
        tolerance=tolerance,
        relative=relative,
    )


def knee_over_seeds(
    curves: Sequence[tuple[ArrayLike, ArrayLike]],
    tolerance: float = 0.01,
    higher_is_better: bool = True,
    relative: bool = True,
    *,
    sharp: float = 3.0,
) -> KneeSpread:
    """Returns the mean and spread of the knees of several seeds.

    Args:
        curves: (ratios, scores) of each seed.
        tolerance: See `essential_sparsity`.
        higher_is_better: See `essential_sparsity`.
        relative: See `essential_sparsity`.
        sharp: See `essential_sparsity`.

    Raises:
        InvalidValue: there is no curve, or one of them is not a valid one.
    """
    if not curves:
        raise InvalidValue("there are no curves; give (ratios, scores) for at least one seed.")
    knees = tuple(
        essential_sparsity(ratios, scores, tolerance, higher_is_better, relative, sharp=sharp)
        for ratios, scores in curves
    )
    found = np.array([knee.sparsity for knee in knees])
    sd = float(found.std(ddof=1)) if len(found) > 1 else math.nan
    return KneeSpread(mean=float(found.mean()), sd=sd, knees=knees)


def bootstrap_knee(
    ratios: ArrayLike,
    per_example: ArrayLike,
    statistic: Statistic = np.mean,
    tolerance: float = 0.01,
    higher_is_better: bool = True,
    relative: bool = True,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Returns the interval of the tolerance knee over evaluation examples.

    A resample whose score never leaves the tolerance counts as the last sparsity tried, so an
    interval that ends there is open upwards.

    Args:
        ratios: (n,) sparsities, see `essential_sparsity`.
        per_example: (n, examples) one value for each sparsity and example.
        statistic: Turns the values of one sparsity into its score, see `paired_bootstrap`.
        tolerance: See `essential_sparsity`.
        higher_is_better: See `essential_sparsity`.
        relative: See `essential_sparsity`.
        level: Confidence level, in (0, 1).
        resamples: How many times the examples are drawn, the same ones for all sparsities.
        seed: Seed of the draws.

    Raises:
        InvalidValue: the curve is not a valid one, a value is not finite, or an argument is out of
            range.
    """
    check_level(level)
    values = np.asarray(per_example, dtype=float)
    if values.ndim != 2 or values.shape[1] == 0:
        raise InvalidValue(
            f"per_example has shape {values.shape}; give one row for each sparsity and one column "
            "for each example."
        )
    scores = [statistic(row) for row in values]
    knee = essential_sparsity(ratios, scores, tolerance, higher_is_better, relative)
    grid = np.asarray(ratios, dtype=float)
    sign = 1.0 if higher_is_better else -1.0
    draws = []
    for curve in resample(values, statistic, resamples, seed):
        crossing = _first_crossing(grid, sign * curve, tolerance, relative)
        draws.append(grid[-1] if crossing is None else crossing)
    return percentile_interval(knee.sparsity, np.array(draws), level, n=values.shape[1])


def _limit(dense: float, tolerance: float, relative: bool) -> float:
    """Returns the lowest score that is still within the tolerance of dense."""
    if not 0.0 <= tolerance < math.inf:
        raise InvalidValue(f"tolerance is {tolerance}; give a loss of at least 0, such as 0.01.")
    if relative and dense == 0:
        raise InvalidValue(
            "the dense score is 0, of which no fraction can be lost; use relative=False."
        )
    return dense - tolerance * (abs(dense) if relative else 1.0)


def _first_crossing(grid: Array, gains: Array, tolerance: float, relative: bool) -> float | None:
    """Returns the sparsity at which the curve first falls below the limit, or None."""
    limit = _limit(float(gains[0]), tolerance, relative)
    below = np.flatnonzero(gains < limit)
    if not below.size:
        return None
    after = int(below[0])
    before = after - 1
    share = (gains[before] - limit) / (gains[before] - gains[after])
    return float(grid[before] + share * (grid[after] - grid[before]))


def _curve(ratios: ArrayLike, scores: ArrayLike) -> tuple[Array, Array]:
    """Returns the checked curve as two float arrays."""
    grid, values = np.asarray(ratios, dtype=float), np.asarray(scores, dtype=float)
    if grid.ndim != 1 or grid.shape != values.shape:
        raise InvalidValue(
            f"ratios have shape {grid.shape} and scores {values.shape}; "
            "give one score for each ratio."
        )
    if grid.size < 4:
        raise InvalidValue(f"the curve has {grid.size} points; a knee needs at least 4.")
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise InvalidValue(
            f"the score at sparsity {grid[bad[0]]:g} is {values[bad[0]]}; every score must be "
            "finite: repeat that run or leave its sparsity out."
        )
    steps = np.diff(grid)
    if (steps == 0).any():
        double = grid[int(np.flatnonzero(steps == 0)[0])]
        raise InvalidValue(f"sparsity {double:g} stands twice; average its scores first.")
    if not (steps > 0).all():
        raise InvalidValue(f"ratios {grid.tolist()} are not sorted; sort them with their scores.")
    if grid[0] != 0 or grid[-1] >= 1:
        raise InvalidValue(
            f"ratios run from {grid[0]:g} to {grid[-1]:g}; they must start with 0, the dense "
            "model, and stay below 1."
        )
    return grid, values
