"""Penalties of single entries: the soft and the hard threshold."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecraft.core.penalties.base import Penalty, check_step, check_strength


@dataclass(frozen=True, kw_only=True)
class L1(Penalty):
    """R(x) = strength * sum |x|; its prox is the soft threshold.

    Args:
        strength: At least 0.

    Example:
        >>> L1().prox(torch.tensor([3.0, -0.5]), step=1.0)
        tensor([2., -0.])
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        check_strength(self.strength)

    def value(self, x: Tensor) -> Tensor:
        """Returns strength * sum |x|."""
        return self.strength * x.abs().sum()

    def prox(self, x: Tensor, step: float) -> Tensor:
        """Returns sign(x) * max(|x| - step * strength, 0)."""
        return soft_threshold(x, check_step(step) * self.strength)

    def threshold(self, step: float) -> float:
        """Returns the largest |x| whose prox is 0."""
        return check_step(step) * self.strength


@dataclass(frozen=True, kw_only=True)
class L0(Penalty):
    """R(x) = strength * number of entries that are not zero; its prox is the hard threshold.

    Args:
        strength: At least 0.

    Example:
        >>> L0().prox(torch.tensor([3.0, -1.0]), step=1.0)
        tensor([3., 0.])
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        check_strength(self.strength)

    def value(self, x: Tensor) -> Tensor:
        """Returns strength * number of entries that are not zero."""
        return self.strength * (x != 0).sum()

    def prox(self, x: Tensor, step: float) -> Tensor:
        """Returns x where |x| > sqrt(2 * step * strength), else 0."""
        return x.masked_fill(x.abs() <= self.threshold(step), 0)

    def threshold(self, step: float) -> float:
        """Returns the largest |x| whose prox is 0."""
        return math.sqrt(2 * check_step(step) * self.strength)


def soft_threshold(x: Tensor, threshold: float) -> Tensor:
    """Returns sign(x) * max(|x| - threshold, 0)."""
    return torch.nn.functional.softshrink(x, threshold)
