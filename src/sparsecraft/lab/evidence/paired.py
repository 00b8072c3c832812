"""Intervals for the difference between two arms that saw the same seeds or the same examples.

A method with randomness is repeated over seeds, and Student's t interval covers the mean of the
paired differences. A method without randomness is run once, and the examples of the evaluation are
resampled, the same ones for both arms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsecraft.core.errors import InvalidValue
from sparsecraft.lab.evidence.student_t import t_quantile

OVER_SEEDS: Final = "t over seeds"
OVER_EXAMPLES: Final = "paired bootstrap over examples"

Array = NDArray[np.float64]
Statistic = Callable[..., Any]
Combine = Literal["difference", "relative drop"] | Callable[[float, float], float]

# Upper bound on the values drawn at once, so that large evaluations fit in memory.
_BLOCK = 2_000_000


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its confidence interval.

    Attributes:
        estimate: The measured value.
        low: Lower end, -inf where nothing is known.
        high: Upper end, inf where nothing is known.
        level: Confidence level, in (0, 1).
        n: How many seeds or examples stand behind it.
        method: What was repeated: the seeds or the examples.
        flip_share: Share of all sign patterns of the paired differences whose mean lies at least
            as far on the estimate's side; 0 where it was not enumerated.
    """

    estimate: float
    low: float
    high: float
    level: float
    n: int
    method: Literal["t over seeds", "paired bootstrap over examples"]
    flip_share: float = 0.0

    def __post_init__(self) -> None:
        if not self.low <= self.estimate <= self.high:
            raise InvalidValue(
                f"interval [{self.low}, {self.high}] does not contain its estimate {self.estimate}."
            )

    @property
    def half_width(self) -> float:
        """Half the distance between the two ends."""
        return (self.high - self.low) / 2

    @property
    def survives_swapped_labels(self) -> bool:
        """Whether swapping the arms in some pairs would seldom have looked as good.

        The t interval alone would, in some draws of 5 seeds, favour 2 of the 32 ways to swap.
        """
        return self.flip_share <= 1 - self.level + 1e-12

    @property
    def counted(self) -> str:
        """What was repeated, with its number, such as `5 seeds`."""
        noun = "seed" if self.method == OVER_SEEDS else "example"
        return f"{self.n} {noun}{'' if self.n == 1 else 's'}"


def perplexity(losses: ArrayLike, axis: int = -1) -> Any:
    """Returns exp(mean loss).

    Args:
        losses: (..., n) negative log-likelihoods, in nats.
        axis: The axis of the examples.

    Example:
        >>> float(perplexity([0.0, 0.0]))
        1.0
    """
    return np.exp(np.mean(np.asarray(losses, dtype=float), axis=axis))


# These take `axis` and therefore reduce many resamples in one call.
_VECTORISED: tuple[Statistic, ...] = (np.mean, perplexity)


def paired_t(differences: ArrayLike, level: float = 0.95) -> Interval:
    """Returns Student's t interval of the mean paired difference.

    One seed says nothing about the spread, so its interval is infinite. Differences that are all
    equal give an interval of width zero: if the seeds change nothing, resample the examples with
    `paired_bootstrap` instead.

    Args:
        differences: (seeds,) arm a minus arm b, paired by seed.
        level: Confidence level, in (0, 1).

    Raises:
        InvalidValue: there is no difference, one is not finite, or the level is out of range.

    Example:
        >>> interval = paired_t([1.0, 2.0, 3.0])
        >>> round(interval.low, 3), interval.estimate, round(interval.high, 3)
        (-0.484, 2.0, 4.484)
    """
    values = _finite("differences", differences)
    check_level(level)
    if values.ndim != 1:
        raise InvalidValue(f"differences have shape {values.shape}; give one number for each seed.")
    n = values.size
    estimate = float(values.mean())
    if n == 1:
        return Interval(estimate, -math.inf, math.inf, level, 1, OVER_SEEDS)
    reach = t_quantile((1 + level) / 2, n - 1) * float(values.std(ddof=1)) / math.sqrt(n)
    low, high = estimate - reach, estimate + reach
    return Interval(estimate, low, high, level, n, OVER_SEEDS, _flip_share(values))


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    statistic: Statistic = np.mean,
    combine: Combine = "difference",
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Returns the percentile interval of a comparison, resampling the same examples for both arms.

    One example says nothing about the spread, so its interval is infinite.

    Args:
        a: (n,) one value for each example in arm a; (n, ...) where the statistic needs several.
        b: The same examples, in the same order, in arm b.
        statistic: Takes the values of one resample and returns a number. `numpy.mean` and
            `perplexity` are computed for many resamples at once.
        combine: `difference` is a - b; `relative drop` is (a - b) / abs(a), the share of arm a's
            score that arm b loses; or any function of the two statistics.
        level: Confidence level, in (0, 1).
        resamples: How many times the examples are drawn with replacement.
        seed: Seed of the draws.

    Raises:
        InvalidValue: the arms differ in shape, a value or a comparison is not finite, or an
            argument is out of range.

    Reference:
        Efron and Tibshirani, 1993, An Introduction to the Bootstrap, eq. 13.5.

    Example:
        >>> interval = paired_bootstrap([1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 1.0])
        >>> interval.estimate, interval.low
        (0.25, 0.0)
    """
    arm_a, arm_b = _finite("a", a), _finite("b", b)
    check_level(level)
    if arm_a.shape != arm_b.shape:
        raise InvalidValue(
            f"arm a has shape {arm_a.shape} and arm b {arm_b.shape}; "
            "give both arms the same examples in the same order."
        )
    arms = np.stack([arm_a, arm_b])
    estimate = _combine(combine, np.array([[statistic(arm) for arm in arms]], dtype=float))[0]
    draws = _combine(combine, resample(arms, statistic, resamples, seed))
    return percentile_interval(float(estimate), draws, level, n=len(arm_a))


def resample(arms: Array, statistic: Statistic, resamples: int, seed: int) -> Array:
    """Returns (resamples, arms) statistics, each row from one draw of examples shared by all arms.

    Args:
        arms: (arms, n, ...) values, one for each arm and example.
        statistic: See `paired_bootstrap`.
        resamples: How many draws, at least 1.
        seed: Seed of the draws.

    Raises:
        InvalidValue: fewer than one resample is asked for.
    """
    if resamples < 1:
        raise InvalidValue(f"resamples is {resamples}; ask for at least 1, better 2000.")
    generator = np.random.default_rng(seed)
    n = arms.shape[1]
    rows = max(1, _BLOCK // arms[0].size)
    vectorised = statistic in _VECTORISED and arms.ndim == 2
    result = np.empty((resamples, len(arms)))
    for start in range(0, resamples, rows):
        block = result[start : start + rows]
        chosen = generator.integers(n, size=(len(block), n))
        for column, arm in enumerate(arms):
            drawn = arm[chosen]
            block[:, column] = (
                statistic(drawn, axis=-1) if vectorised else [statistic(one) for one in drawn]
            )
    return result


def percentile_interval(estimate: float, draws: Array, level: float, n: int) -> Interval:
    """Returns the interval between the outer percentiles of bootstrap draws.

    Args:
        estimate: The value on the examples as they are.
        draws: (resamples,) the value on each resample.
        level: Confidence level, in (0, 1).
        n: How many examples were resampled; one gives an infinite interval.

    Raises:
        InvalidValue: a draw is not finite.
    """
    lost = int((~np.isfinite(draws)).sum())
    if lost or not math.isfinite(estimate):
        raise InvalidValue(
            f"the comparison is not finite in {lost} of {len(draws)} resamples; "
            "choose a statistic that is defined on every resample, or a larger evaluation set."
        )
    if n == 1:
        return Interval(estimate, -math.inf, math.inf, level, n, OVER_EXAMPLES)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    # Rounding, or a strongly biased statistic, can leave the estimate outside its own percentiles.
    return Interval(
        estimate, min(float(low), estimate), max(float(high), estimate), level, n, OVER_EXAMPLES
    )


def examples_needed(interval: Interval, target: float) -> int | None:
    """Returns how many examples would separate the interval from `target`.

    The end that faces the target is taken to approach the estimate as 1/sqrt(n); for few seeds it
    does so faster, since the t quantile falls too, so the answer is then on the safe side.

    Args:
        interval: What was measured.
        target: The value that the interval should exclude.

    Returns:
        The smallest such number, which is below `interval.n` where the target is excluded already;
        None where the estimate equals the target or the interval is infinite.

    Example:
        >>> examples_needed(Interval(1.0, -1.0, 3.0, 0.95, 100, "t over seeds"), target=0.0)
        401
    """
    distance = abs(interval.estimate - target)
    facing = interval.low if interval.estimate > target else interval.high
    reach = abs(interval.estimate - facing)
    # A distance of rounding errors is none.
    if math.isinf(reach) or distance <= 1e-12 * max(reach, abs(target)):
        return None
    return math.floor(interval.n * (reach / distance) ** 2) + 1


def _flip_share(differences: Array) -> float:
    """Returns the share of sign patterns at least as extreme; enumerated from 5 to 14 seeds.

    With fewer, no pattern could be rarer than 1 in 16; with more, the t interval is close enough.
    """
    n = differences.size
    if not 5 <= n <= 14:
        return 0.0
    bits = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    sums = (1.0 - 2.0 * bits) @ differences
    observed = differences.sum()
    slack = 1e-12 * np.abs(differences).sum()
    beyond = sums >= observed - slack if observed >= 0 else sums <= observed + slack
    return float(beyond.mean())


def _combine(combine: Combine, statistics: Array) -> Array:
    """Returns (resamples,) comparisons from (resamples, 2) statistics of the two arms."""
    a, b = statistics.T
    if combine == "difference":
        return a - b
    if combine == "relative drop":
        if (a == 0).any():
            raise InvalidValue(
                "the relative drop divides by arm a's score, which is 0; use combine='difference'."
            )
        return (a - b) / np.abs(a)
    if callable(combine):
        return np.array([combine(one, other) for one, other in zip(a, b, strict=True)], dtype=float)
    raise InvalidValue(
        f"combine is {combine!r}; allowed are 'difference', 'relative drop' or a function of two "
        "numbers."
    )


def _finite(name: str, values: ArrayLike) -> Array:
    """Returns the values as a float array of one or more dimensions, none empty or non-finite."""
    array = np.asarray(values, dtype=float)
    if array.ndim == 0 or array.size == 0:
        raise InvalidValue(f"{name} is empty or a single number; give an array of at least one.")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        where = tuple(int(i) for i in bad[0])
        raise InvalidValue(
            f"{name} at index {where[0] if len(where) == 1 else where} is {array[where]}; "
            "every value must be finite: find out why that run failed."
        )
    return array


def check_level(level: float) -> None:
    """Raises InvalidValue unless the confidence level lies in (0, 1)."""
    if not 0.0 < level < 1.0:
        raise InvalidValue(f"level is {level}; a confidence level lies between 0 and 1, say 0.95.")
