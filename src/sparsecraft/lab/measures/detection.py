"""Whether a classifier tells what it was trained on from what it has never seen.

Reference:
    Hendrycks, Gimpel, 2017, arXiv 1610.02136: the largest probability as a detector.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue, NonFinite


def roc_auc(positives: Tensor, negatives: Tensor) -> float:
    """Returns how often a positive has the higher score than a negative, ties counting half.

    Args:
        positives: (n,) scores that should be high.
        negatives: (m,) scores that should be low.

    Raises:
        InvalidValue: If one of them is empty.
        NonFinite: If a score is NaN.

    Example:
        >>> roc_auc(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 0.0]))
        0.875
    """
    high, low = positives.detach().flatten(), negatives.detach().flatten()
    if not (len(high) and len(low)):
        raise InvalidValue(f"{len(high)} positives and {len(low)} negatives: give at least 1 each")
    if bool(high.isnan().any() or low.isnan().any()):
        raise NonFinite("a score is NaN; it has no rank")
    _, inverse, counts = torch.cat([high, low]).unique(
        sorted=True, return_inverse=True, return_counts=True
    )
    # Equal scores share the mean of their ranks, counted from 1.
    last = counts.cumsum(0).double()
    ranks = (last - (counts.double() - 1) / 2)[inverse[: len(high)]]
    wins = float(ranks.sum()) - len(high) * (len(high) + 1) / 2
    return wins / (len(high) * len(low))


def out_of_distribution_auc(inside: Tensor, outside: Tensor) -> float:
    """Returns the ROC-AUC of the largest probability as a sign of known data; 0.5 is chance.

    Args:
        inside: (n, classes) logits of test data.
        outside: (m, classes) logits of data of another kind.
    """
    return roc_auc(inside.double().softmax(1).amax(1), outside.double().softmax(1).amax(1))
