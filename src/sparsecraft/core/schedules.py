"""When a mask changes, and how many weights are left then.

A schedule answers two questions about an optimiser step: `density(step)`, the fraction of weights
that should be left, and `due(step)`, whether the mask is to be renewed at this step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from sparsecraft.core.errors import InvalidValue, check_density


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """From one density to another between two steps.

    Args:
        final: Density from step `end` on, in (0, 1].
        initial: Density up to step `begin`, in (0, 1].
        begin: First step at which the mask may change.
        end: Step at which the final density is reached.
        every: Steps from one change to the next; `end` is always a change.
    """

    final: float
    initial: float = 1.0
    begin: int = 0
    end: int = 0
    every: int = 1

    def __post_init__(self) -> None:
        check_density(self.final)
        check_density(self.initial)
        if not 0 <= self.begin <= self.end:
            raise InvalidValue(
                f"schedule from step {self.begin} to step {self.end}: "
                "begin must be at least 0 and not after end"
            )
        if self.every < 1:
            raise InvalidValue(f"every={self.every}: a schedule needs at least 1 step between")

    @abstractmethod
    def blend(self, progress: float) -> float:
        """Returns the density at a progress in [0, 1] of the way from begin to end."""

    def density(self, step: int) -> float:
        """Returns the fraction of weights that should be left after this step's change."""
        if step >= self.end:
            return self.final
        if step < self.begin:
            return self.initial
        return self.blend((step - self.begin) / (self.end - self.begin))

    def due(self, step: int) -> bool:
        """Returns whether the mask is to be renewed at this step."""
        if not self.begin <= step <= self.end:
            return False
        return step == self.end or (step - self.begin) % self.every == 0


@dataclass(frozen=True, kw_only=True)
class OneShot(Schedule):
    """The final density at once, at step `begin`.

    Example:
        >>> once = OneShot(final=0.1, begin=5)
        >>> once.density(4), once.density(5), once.due(5), once.due(6)
        (1.0, 0.1, True, False)
    """

    end: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "end", self.begin)
        super().__post_init__()

    def blend(self, progress: float) -> float:
        """Returns the final density."""
        return self.final


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """One density throughout; the mask is renewed every `every` steps from begin to end."""

    initial: float = field(init=False, default=1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "initial", self.final)
        super().__post_init__()

    def blend(self, progress: float) -> float:
        """Returns the density."""
        return self.final


@dataclass(frozen=True, kw_only=True)
class Linear(Schedule):
    """Equal numbers of weights go at each step."""

    def blend(self, progress: float) -> float:
        """Returns initial + progress * (final - initial)."""
        return self.initial + progress * (self.final - self.initial)


@dataclass(frozen=True, kw_only=True)
class Cubic(Schedule):
    """Many weights go early, few late.

    Example:
        >>> Cubic(final=0.2, end=10).density(5)
        0.30000000000000004

    Reference:
        Zhu, Gupta, 2017, arXiv 1710.01878, eq. 1.
    """

    def blend(self, progress: float) -> float:
        """Returns final + (initial - final) * (1 - progress)^3."""
        return self.final + (self.initial - self.final) * (1.0 - progress) ** 3


@dataclass(frozen=True, kw_only=True)
class Exponential(Schedule):
    """The same fraction of what is left goes at each step.

    Reference:
        Tanaka et al., 2020, arXiv 2006.05467, algorithm 1.
    """

    def blend(self, progress: float) -> float:
        """Returns initial * (final / initial)^progress."""
        return self.initial * (self.final / self.initial) ** progress


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Slow at both ends: half a cosine from the initial to the final density."""

    def blend(self, progress: float) -> float:
        """Returns final + (initial - final) * (1 + cos(pi * progress)) / 2."""
        return self.final + (self.initial - self.final) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True, kw_only=True)
class Step(Schedule):
    """A stair: equal drops, `every` steps apart, the last one at `end`.

    Example:
        >>> stair = Step(final=0.2, end=10, every=5)
        >>> [round(stair.density(step), 3) for step in (0, 4, 5, 9, 10)]
        [1.0, 1.0, 0.6, 0.6, 0.2]
    """

    def density(self, step: int) -> float:
        """Returns the density of the stair on which this step stands."""
        drops = math.ceil((self.end - self.begin) / self.every)
        if step < self.begin or not drops:
            return super().density(step)
        return (
            self.final
            if step >= self.end
            else self.blend((step - self.begin) // self.every / drops)
        )

    def blend(self, progress: float) -> float:
        """Returns initial + progress * (final - initial)."""
        return self.initial + progress * (self.final - self.initial)
