"""What a penalty is, and the checks of its settings."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from torch import Tensor

from sparsecraft.core.errors import InvalidValue


class Penalty(ABC):
    """A function R of a tensor that is smaller where there are zeros."""

    @property
    def couples_rows(self) -> bool:
        """Whether R of (rows, width) is no sum over the rows, so that they cannot be parted."""
        return False

    @abstractmethod
    def value(self, x: Tensor) -> Tensor:
        """Returns R(x), a scalar."""

    @abstractmethod
    def prox(self, x: Tensor, step: float) -> Tensor:
        """Returns argmin_z 1/2 ||z - x||^2 + step * R(z), in the shape and type of x.

        Args:
            x: Any floating tensor.
            step: At least 0.
        """


def check_strength(strength: float) -> float:
    """Returns the strength, or raises InvalidValue unless it is finite and at least 0."""
    if not (isinstance(strength, int | float) and 0 <= strength < math.inf):
        raise InvalidValue(f"strength={strength!r} is not allowed: give a number of at least 0")
    return strength


def check_step(step: float) -> float:
    """Returns the step, or raises InvalidValue unless it is finite and at least 0."""
    if not 0 <= step < math.inf:
        raise InvalidValue(
            f"step={step!r} is not allowed: a prox needs a finite step of at least 0 (the learning "
            "rate times the strength)"
        )
    return float(step)


def check_count(k: int, groups: int | None = None) -> int:
    """Returns k, or raises InvalidValue unless it is an integer from 1 to the number of groups."""
    whole = isinstance(k, int) and not isinstance(k, bool)
    if not whole or k < 1 or (groups is not None and k > groups):
        there = "" if groups is None else f" to {groups}, the number of groups"
        raise InvalidValue(f"k={k!r} is not allowed: give an integer from 1{there}")
    return k
