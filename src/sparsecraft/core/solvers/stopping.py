"""When an iteration has settled, and rates that fall with time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue, UnknownName

Measure = Literal["row", "batch"]
MEASURES: tuple[Measure, ...] = get_args(Measure)


@dataclass(frozen=True, kw_only=True)
class Stopping:
    """When to stop: ||r_t - r_{t-1}|| / (tolerance + ||r_{t-1}||) < tolerance.

    Args:
        tolerance: Above 0.
        max_steps: Steps after which what has not settled is given up, and counted.
        measure: "row" asks each row for itself, "batch" all rows at once by the spectral norm.

    Reference:
        Rentzeperis et al., 2023, arXiv 2301.10002, methods, whose code asks the batch, with a
        tolerance of 1e-2 and at most 5000 steps.
    """

    tolerance: float = 1e-4
    max_steps: int = 2000
    measure: Measure = "row"

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < math.inf:
            raise InvalidValue(f"tolerance={self.tolerance!r} is not allowed: give one above 0")
        if not isinstance(self.max_steps, int) or self.max_steps < 1:
            raise InvalidValue(
                f"max_steps={self.max_steps!r} is not allowed: give a whole number of at least 1"
            )
        if self.measure not in MEASURES:
            raise UnknownName("measure", str(self.measure), MEASURES)

    def settled(self, now: Tensor, before: Tensor) -> Tensor:
        """Returns bool (rows,): whether the change of each row is small."""
        if self.measure == "row":
            change, size = (now - before).norm(dim=1), before.norm(dim=1)
            return change < self.tolerance * (self.tolerance + size)
        change, size = _spectral(now - before), _spectral(before)
        return (change < self.tolerance * (self.tolerance + size)).expand(len(now))


@dataclass(frozen=True, kw_only=True)
class Decay:
    """A rate that falls with time: first / (1 + first / 50 * t).

    Args:
        first: The rate at time 0.
        thresholds: Whether the prox takes the falling rate too, so that its fixed points stay those
            of the problem. Otherwise it keeps the first one, as the authors' code does.

    Example:
        >>> Decay(first=0.5)(0), Decay(first=0.5)(100)
        (0.5, 0.25)

    Reference:
        Rentzeperis et al., 2023, arXiv 2301.10002; their code uses it for CEL0 with more than 500
        atoms.
    """

    first: float
    thresholds: bool = False

    def __call__(self, time: int) -> float:
        """Returns the rate at a time, counted from 0."""
        return self.first / (1 + self.first / 50 * time)

    def prox(self, time: int) -> float:
        """Returns the step of the prox at a time."""
        return self(time) if self.thresholds else self.first


def _spectral(matrix: Tensor) -> Tensor:
    """Returns the largest singular value, from the smaller of the two products."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    return torch.linalg.eigvalsh(wide @ wide.T)[-1].clamp_min(0).sqrt()
