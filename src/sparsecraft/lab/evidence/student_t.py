"""Quantiles of Student's t distribution for whole degrees of freedom.

Seeds are counted, so the degrees of freedom are whole numbers, for which the distribution function
is a finite sum. That keeps scipy out of the dependencies.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from sparsecraft.core.errors import InvalidValue


def central_probability(angle: float, df: int) -> float:
    """Returns P(-t <= T <= t), T distributed as Student's t and t = sqrt(df) * tan(angle).

    Args:
        angle: arctan(t / sqrt(df)), in [0, pi / 2].
        df: degrees of freedom, at least 1.

    Reference:
        Abramowitz and Stegun, 1964, Handbook of Mathematical Functions, eq. 26.7.3 and 26.7.4.
    """
    sine, cosine = math.sin(angle), math.cos(angle)
    # Each term of the sum is the one before it times (1 - 1/k) cos^2: k odd for odd df, else even.
    factors = 1.0 - 1.0 / np.arange(2 + df % 2, df, 2)
    terms = np.cumprod(factors * cosine**2)
    if df % 2 == 0:
        return float(sine * (1.0 + terms.sum()))
    series = cosine * (1.0 + terms.sum()) if df > 1 else 0.0
    return float(2.0 / math.pi * (angle + sine * series))


@lru_cache(maxsize=256)
def t_quantile(probability: float, df: int) -> float:
    """Returns the t with P(T <= t) = `probability`.

    Args:
        probability: in (0, 1).
        df: degrees of freedom, a whole number of at least 1.

    Raises:
        InvalidValue: the probability or the degrees of freedom are out of range.

    Example:
        >>> round(t_quantile(0.975, 4), 3)
        2.776
    """
    if not 0.0 < probability < 1.0:
        raise InvalidValue(f"probability is {probability}; a quantile needs one between 0 and 1.")
    if df < 1 or int(df) != df:
        raise InvalidValue(f"df is {df}; degrees of freedom are a whole number of at least 1.")
    central = abs(2.0 * probability - 1.0)
    low, high = 0.0, math.pi / 2
    for _ in range(80):  # each step halves the bracket; 80 exhaust a double
        middle = (low + high) / 2
        if central_probability(middle, int(df)) < central:
            low = middle
        else:
            high = middle
    return math.copysign(math.sqrt(df) * math.tan(low), probability - 0.5)
