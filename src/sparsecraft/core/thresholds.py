"""Thresholds that a wanted share of activations stays under: exact, and as three papers find them.

The library uses exact quantiles. TEAL (Liu et al., 2024, arXiv 2408.14690) interpolates the
cumulative counts of a histogram of the signed values and assumes that they are symmetric around
zero; WINA (Chen et al., 2025, arXiv 2505.19427) interpolates the cumulative counts of the distinct
float16 scores; CATS (Lee et al., 2024, arXiv 2404.08763) takes an edge of a histogram that ends at
one, so that its thresholds are too small where activations are larger. These three are here to
compare with. Everywhere an entry is kept if its score exceeds the threshold.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue, NonFinite, check_sparsity
from sparsecraft.core.mask import count
from sparsecraft.kernels.selection import threshold_largest

_TEAL_BINS = 10_000
_TEAL_TAIL = 0.01  # of the values on either side lies beyond the evenly spaced edges
_CATS_EDGES = 1000


def exact_threshold(scores: Tensor, sparsity: float) -> float:
    """Returns the largest score that shall be dropped: the exact quantile.

    Args:
        scores: Any shape, at least 0; as many as `count(numel, 1 - sparsity)` exceed what is
            returned, fewer only where scores tie with it.
        sparsity: Share dropped, in [0, 1).

    Raises:
        InvalidValue: For no scores.
        NonFinite: If scores are NaN or infinite.

    Example:
        >>> exact_threshold(torch.tensor([4.0, 1.0, 3.0, 2.0]), 0.5)
        2.0
    """
    check_sparsity(sparsity)
    _check(scores)
    kept = count(scores.numel(), 1 - sparsity)
    # Scores are at least 0 and an entry must exceed the threshold, so 0 drops only zeros.
    return 0.0 if kept == scores.numel() else float(threshold_largest([scores], kept + 1))


def teal_threshold(values: Tensor, sparsity: float) -> float:
    """Returns TEAL's threshold: F^-1(0.5 + sparsity / 2) of a histogram of the signed values.

    The histogram has 10,000 bins between the 1 % and the 99 % order statistics, and the smallest
    and the largest value as outer edges. F is interpolated linearly between the bins' centres.

    Args:
        values: Activations of any shape, signed, taken to be symmetric around zero.
        sparsity: Share dropped, in [0, 1).

    Reference:
        Liu et al., 2024, arXiv 2408.14690, section 4.
    """
    check_sparsity(sparsity)
    _check(values)
    ordered = values.detach().float().flatten().sort().values
    low = ordered[int(_TEAL_TAIL * ordered.numel())]
    high = ordered[int((1 - _TEAL_TAIL) * ordered.numel())]
    inner = torch.linspace(float(low), float(high), _TEAL_BINS - 1)
    edges = torch.cat((ordered[:1], inner, ordered[-1:]))
    # A value on an edge belongs to the bin above it, the last edge to the last bin.
    below = torch.searchsorted(ordered, edges[1:-1], right=False)
    cumulative = torch.cat((below, below.new_tensor([ordered.numel()])))
    centres = (edges[1:] + edges[:-1]) / 2
    return _interpolated(cumulative.double() / ordered.numel(), centres, 0.5 + sparsity / 2)


def wina_threshold(scores: Tensor, sparsity: float) -> float:
    """Returns WINA's threshold: F^-1(sparsity) over the distinct scores rounded to float16.

    Args:
        scores: |x_j| times the column norm, any shape.
        sparsity: Share dropped, in [0, 1).

    Reference:
        Chen et al., 2025, arXiv 2505.19427, official code.

    Example:
        >>> wina_threshold(torch.tensor([1.0, 2.0, 2.0, 4.0]), 0.5)
        1.5
    """
    check_sparsity(sparsity)
    _check(scores)
    distinct, counts = scores.detach().half().flatten().unique(sorted=True, return_counts=True)
    return _interpolated(counts.cumsum(0).double() / counts.sum(), distinct.float(), sparsity)


def cats_threshold(values: Tensor, sparsity: float) -> float:
    """Returns CATS's threshold: an edge of a histogram of magnitudes with 1000 edges on [-1, 1].

    Its edges end at 1 and infinity, so it is never above 1: too small for larger activations.

    Args:
        values: What the activation function gave, any shape.
        sparsity: Share dropped, in [0, 1).

    Reference:
        Lee et al., 2024, arXiv 2404.08763, section 3, official code.
    """
    check_sparsity(sparsity)
    _check(values)
    infinity = torch.tensor([float("inf")])
    edges = torch.cat((-infinity, torch.linspace(-1, 1, _CATS_EDGES), infinity))
    sizes = values.detach().float().abs().flatten().sort().values
    below = torch.searchsorted(sizes, edges[1:-1], right=False)
    cumulative = torch.cat((below, below.new_tensor([sizes.numel()]))).double() / sizes.numel()
    at = torch.tensor(sparsity, dtype=cumulative.dtype)
    return float(edges[int(torch.searchsorted(cumulative, at, right=True))])


def _interpolated(cumulative: Tensor, places: Tensor, share: float) -> float:
    """Returns where the cumulative share reaches `share`, linearly between the known places."""
    at = torch.tensor(share, dtype=cumulative.dtype)
    upper = int(torch.searchsorted(cumulative, at))
    if upper == 0:
        return float(places[0])
    if upper >= len(places):
        return float(places[-1])
    low, high = cumulative[upper - 1], cumulative[upper]
    part = (at - low) / (high - low)
    return float(places[upper - 1] + part * (places[upper] - places[upper - 1]))


def _check(values: Tensor) -> None:
    if not values.numel():
        raise InvalidValue("a threshold was asked over no values; give calibration data")
    if not torch.isfinite(values).all():
        raise NonFinite(
            "activations are NaN or infinite, so no threshold can be found. Check the model and "
            "the calibration data, or load the model in float32."
        )
