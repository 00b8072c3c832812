"""N:M masks: the `keep` largest entries of each `of` consecutive ones."""

from __future__ import annotations

from torch import Tensor

from sparsecraft.kernels import backends
from sparsecraft.kernels.selection import keep_largest_per_row

# Ranking by comparing all pairs costs of / 2 a entry; longer groups are cheaper to select from.
LONGEST_RANKED = 32


def nm_mask(scores: Tensor, keep: int, of: int) -> Tensor:
    """Returns a bool mask that keeps the `keep` largest of each `of` consecutive entries.

    Groups lie along the last dimension. Of equal entries the earlier one is kept.

    Args:
        scores: (..., n) with n a multiple of `of`; float16, bfloat16, float32 or float64.
        keep: How many entries of a group are kept, from 0 to `of`.
        of: Length of a group, at least 1.

    Returns:
        A mask of the shape of the scores.

    Raises:
        ValueError: If the groups do not fit, or the scores hold NaN or are not floats.

    Example:
        >>> import torch
        >>> nm_mask(torch.tensor([[3., 1., 1., 1.]]), keep=2, of=4)
        tensor([[ True,  True, False, False]])
    """
    _check(scores, keep, of)
    groups = scores.detach().reshape(-1, of)
    if of > LONGEST_RANKED or backends.choose([scores]) == "torch":
        return keep_largest_per_row(groups, keep).view(scores.shape)
    from sparsecraft.kernels.nm_numba import ranked_groups

    return ranked_groups(groups, keep).view(scores.shape)


def _check(scores: Tensor, keep: int, of: int) -> None:
    if of < 1 or not 0 <= keep <= of:
        raise ValueError(
            f"keep={keep} of={of} is not allowed: of must be at least 1 and keep from 0 to of. "
            "keep=2, of=4 keeps 2 of every 4."
        )
    if scores.dim() == 0 or scores.shape[-1] % of:
        raise ValueError(
            f"scores of shape {tuple(scores.shape)} do not divide into groups of {of} along the "
            "last dimension; its length must be a multiple of the group."
        )
