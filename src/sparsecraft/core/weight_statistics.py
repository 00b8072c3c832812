"""What a weight tensor looks like: its largest entry, its tails, its mass near zero."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue

NEAR_ZERO = 0.01
BINS = 50


@dataclass(frozen=True)
class WeightStatistics:
    """Figures of one tensor.

    Args:
        largest: The largest |w|.
        deviation: Standard deviation.
        near_zero: Fraction with |w| below `near` standard deviations.
        kurtosis: Fourth central moment over the squared variance; 3 for a normal distribution,
            1.8 for a uniform one, more for heavy tails.
        histogram: Counts in equal bins from -largest to largest.
    """

    largest: float
    deviation: float
    near_zero: float
    kurtosis: float
    histogram: tuple[int, ...]


@torch.no_grad()
def weight_statistics(
    weight: Tensor, *, near: float = NEAR_ZERO, bins: int = BINS
) -> WeightStatistics:
    """Returns the figures of a tensor.

    Args:
        weight: Any shape, at least one entry.
        near: What counts as near zero, in standard deviations.
        bins: Of the histogram.

    Raises:
        InvalidValue: If the tensor is empty.

    Example:
        >>> found = weight_statistics(torch.tensor([-1.0, 1.0, -1.0, 1.0]), bins=2)
        >>> found.kurtosis, found.near_zero, found.histogram
        (1.0, 0.0, (2, 2))
    """
    if weight.numel() == 0:
        raise InvalidValue("an empty tensor has no statistics")
    flat = weight.detach().reshape(-1).to("cpu", torch.float64)
    largest = float(flat.abs().max())
    centred = flat - flat.mean()
    variance = float(centred.square().mean())
    fourth = float(centred.pow(4).mean())
    edge = largest or 1.0
    counts = torch.histc(flat, bins=bins, min=-edge, max=edge)
    return WeightStatistics(
        largest=largest,
        deviation=variance**0.5,
        near_zero=float((flat.abs() < near * variance**0.5).double().mean()),
        # A constant tensor has no tails; 0/0 would say so less clearly.
        kurtosis=fourth / variance**2 if variance > 0 else 0.0,
        histogram=tuple(int(count) for count in counts),
    )
