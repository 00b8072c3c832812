"""Whether a classifier is as sure as it is right.

Logits may be the logarithm of probabilities, so that an ensemble's mean can be measured too.

Reference:
    Naeini et al., 2015; Guo et al., 2017, arXiv 1706.04599, section 2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsecraft.core.errors import InvalidValue

BINS = 15


class _Bins(NamedTuple):
    """Share of the examples and |accuracy - confidence| of each bin; empty bins have share 0."""

    shares: Tensor
    gaps: Tensor


def expected_calibration_error(logits: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """Returns the mean of |accuracy - confidence| over bins of confidence, by their size.

    The confidence is the largest probability; bins are equally wide and hold their upper bound.

    Args:
        logits: (n, classes).
        labels: (n,) class indices.
        bins: How many.

    Example:
        >>> even = torch.zeros(2, 2)
        >>> expected_calibration_error(even, torch.tensor([0, 1]))
        0.0
        >>> expected_calibration_error(even, torch.tensor([0, 0]))
        0.5
    """
    found = _binned(logits, labels, bins)
    return float((found.shares * found.gaps).sum())


def maximum_calibration_error(logits: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """Returns the largest |accuracy - confidence| of a bin that is not empty."""
    return float(_binned(logits, labels, bins).gaps.max())


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> float:
    """Returns the mean of -log p(label), in nats."""
    check_logits(logits, labels)
    return float(F.cross_entropy(logits.double(), labels))


def brier_score(logits: Tensor, labels: Tensor) -> float:
    """Returns the mean squared distance of the probabilities to the one-hot label, in [0, 2]."""
    check_logits(logits, labels)
    wanted = F.one_hot(labels, logits.shape[1])
    return float((logits.double().softmax(1) - wanted).square().sum(1).mean())


def check_logits(logits: Tensor, labels: Tensor) -> None:
    """Raises InvalidValue unless there are logits (n, classes) and labels (n,), n at least 1."""
    if logits.dim() != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise InvalidValue(
            f"logits have shape {tuple(logits.shape)} and labels {tuple(labels.shape)}: give "
            "(n, classes) and (n,), with at least one example"
        )
    if (
        labels.is_floating_point()
        or not 0 <= int(labels.min()) <= int(labels.max()) < (logits.shape[1])
    ):
        raise InvalidValue(f"labels must be class indices from 0 to {logits.shape[1] - 1}")


def _binned(logits: Tensor, labels: Tensor, bins: int) -> _Bins:
    check_logits(logits, labels)
    if bins < 1:
        raise InvalidValue(f"bins={bins} is not allowed: give at least 1")
    confidence, predicted = logits.softmax(1).max(1)
    bounds = torch.linspace(0, 1, bins + 1, device=logits.device)
    index = (torch.bucketize(confidence, bounds) - 1).clamp(0, bins - 1)

    def totals(values: Tensor) -> Tensor:
        start = torch.zeros(bins, dtype=torch.float64, device=logits.device)
        return start.index_add(0, index, values.double())

    sizes = totals(torch.ones_like(confidence))
    gaps = (totals(predicted == labels) - totals(confidence)).abs() / sizes.clamp(min=1)
    return _Bins(sizes / len(labels), gaps)
