"""Axes: where a value lies between two ends, and round numbers to mark, linear or logarithmic."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

# A span of six to one is where a linear axis starts to squash its small end.
LOG_FROM = 6.0
# Beyond this a positive value is as good as zero, and a logarithm would show nothing else.
LOG_TO = 1e9


@dataclass(frozen=True, kw_only=True)
class Scale:
    """An axis from `low` to `high`, low below high, both positive where it is logarithmic."""

    low: float
    high: float
    log: bool = False

    def position(self, value: float) -> float:
        """Returns where the value lies, 0 at the low end and 1 at the high end, clamped."""
        return self.project(min(max(value, self.low), self.high))

    def project(self, value: float) -> float:
        """Returns where the value lies, below 0 or above 1 where it is off the axis."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, about: int = 5) -> list[float]:
        """Returns round values inside the axis, about as many as asked."""
        return self._log_ticks(about) if self.log else self._linear_ticks(about)

    def _linear_ticks(self, about: int) -> list[float]:
        step = round_step((self.high - self.low) / about)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(index * step, 12) for index in range(first, last + 1)]

    def _log_ticks(self, about: int) -> list[float]:
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        ticks: list[float] = []
        for steps in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 4, 5, 7)):
            found = [step * 10.0**power for power in powers for step in steps]
            ticks = [tick for tick in found if self.low <= tick <= self.high]
            if len(ticks) >= min(about, 4):
                break
        return ticks


def round_step(step: float) -> float:
    """Returns the nearest of 1, 2, 2.5, 5 times a power of ten that is at least the step.

    Example:
        >>> round_step(0.13)
        0.2
    """
    power = 10.0 ** math.floor(math.log10(step))
    factor = next(factor for factor in (1, 2, 2.5, 5, 10) if step <= factor * power * (1 + 1e-9))
    return factor * power


def fitted(
    values: Iterable[float], *, log: bool | None = None, from_zero: bool = False, pad: float = 0.06
) -> Scale:
    """Returns an axis that holds all values with some room at its ends.

    Args:
        values: What must fit; may be empty.
        log: Whether the axis is logarithmic; where None, it is when the values span much.
        from_zero: Whether a linear axis starts at zero.
        pad: Room at each end, as a fraction of the span.
    """
    known = list(values) or [0.0, 1.0]
    low, high = min(known), max(known)
    if log is None:
        log = low > 0 and LOG_FROM * low <= high <= LOG_TO * low
    if log and low > 0:
        room = (high / low) ** pad if high > low else 2.0
        return Scale(low=low / room, high=high * room, log=True)
    if from_zero:
        low = min(low, 0.0)
    span = (high - low) or abs(high) or 1.0
    start = low if from_zero and low == 0 else low - pad * span
    return Scale(low=start, high=high + pad * span)
