"""Penalties of single entries that also forbid negative ones: what ReLU and JumpReLU are proxes of.

Soft thresholding of the positive part is a ReLU whose bias is minus the threshold; hard
thresholding of the positive part is a JumpReLU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecraft.core.penalties.base import Penalty, check_step, check_strength


@dataclass(frozen=True, kw_only=True)
class NonNegativeL1(Penalty):
    """R(x) = strength * sum x if no entry is negative, else infinite; the prox is a shifted ReLU.

    Args:
        strength: At least 0; at 0 the prox is the ReLU itself.

    Example:
        >>> NonNegativeL1().prox(torch.tensor([3.0, 0.5, -3.0]), step=1.0)
        tensor([2., 0., 0.])

    Reference:
        Zhu et al., 2025, arXiv 2510.00404, table 1.
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        check_strength(self.strength)

    def value(self, x: Tensor) -> Tensor:
        """Returns strength * sum x, or infinity if an entry is negative."""
        return (self.strength * x.sum()).where(_none_negative(x), math.inf)

    def prox(self, x: Tensor, step: float) -> Tensor:
        """Returns max(x - step * strength, 0)."""
        return (x - check_step(step) * self.strength).relu()


@dataclass(frozen=True, kw_only=True)
class NonNegativeL0(Penalty):
    """R(x) = strength * entries not zero if none is negative, else infinite; the prox jumps.

    A JumpReLU with threshold theta is the prox at step * strength = theta^2 / 2.

    Args:
        strength: At least 0; at 0 the prox is the ReLU.

    Example:
        >>> NonNegativeL0(strength=2.0).prox(torch.tensor([3.0, 1.5, -3.0]), step=1.0)
        tensor([3., 0., 0.])

    Reference:
        Zhu et al., 2025, arXiv 2510.00404, table 1.
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        check_strength(self.strength)

    def value(self, x: Tensor) -> Tensor:
        """Returns strength * entries that are not zero, or infinity if one is negative."""
        counted = self.strength * (x != 0).sum().to(x.dtype)
        return counted.where(_none_negative(x), math.inf)

    def prox(self, x: Tensor, step: float) -> Tensor:
        """Returns x where x > sqrt(2 * step * strength), else 0."""
        threshold = math.sqrt(2 * check_step(step) * self.strength)
        return above(x, torch.tensor(threshold, dtype=x.dtype, device=x.device))


def above(x: Tensor, threshold: Tensor) -> Tensor:
    """Returns x where it exceeds the threshold, else 0.

    Args:
        x: Any floating tensor.
        threshold: At least 0, of a shape that broadcasts to x.
    """
    return torch.where(x > threshold, x, torch.zeros_like(x))


def _none_negative(x: Tensor) -> Tensor:
    return (x >= 0).all()
