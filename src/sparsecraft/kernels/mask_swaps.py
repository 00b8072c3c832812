"""Swaps of kept against pruned entries, row by row, that bring what a row lost back to zero.

An entry w_rj of a matrix contributes w_rj * s_j to its output. A row has lost the sum of the
contributions of its pruned entries. Each cycle takes back the steadiest large contribution of the
sign of the loss, gives up the cheapest kept one of the opposite sign, and so makes the loss
smaller; how many entries a row keeps never changes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sparsecraft.kernels import backends


@dataclass(frozen=True, eq=False)
class Swaps:
    """The outcome, row by row.

    Args:
        keep: bool (rows, columns), True where kept.
        before: float64 (rows,), the loss with the mask that was given.
        after: float64 (rows,), the loss with `keep`.
        swaps: int64 (rows,), how many pairs were swapped.
    """

    keep: Tensor
    before: Tensor
    after: Tensor
    swaps: Tensor


@dataclass(frozen=True, kw_only=True)
class Stop:
    """When a row is done.

    Args:
        cycles: Cycles at most.
        threshold: A loss of at most this size is small enough.
        same_sign: Whether a row also ends before the swap that would turn the loss's sign.
    """

    cycles: int
    threshold: float
    same_sign: bool


def swap_in_rows(
    weight: Tensor, sums: Tensor, spreads: Tensor, norms: Tensor, keep: Tensor, stop: Stop
) -> Swaps:
    """Returns the masks after swaps of any two entries of a row.

    Grown is the pruned entry of largest w_rj s_j / spread_j where the loss is positive, of
    smallest where it is negative. Given up is the kept entry of lowest |w_rj| norm_j among those
    whose contribution has the other sign. Of equal ones the first is taken, each once, and a row
    without a candidate is done.

    Args:
        weight: float32 (rows, columns).
        sums: float32 (columns,), s.
        spreads: float32 (columns,), above 0.
        norms: float32 (columns,), at least 0.
        keep: bool (rows, columns); left as it is.
        stop: When a row is done.

    Example:
        >>> import torch
        >>> ones = torch.ones(3)
        >>> weight, keep = torch.tensor([[2.0, -1.0, 3.0]]), torch.tensor([[False, True, True]])
        >>> stop = Stop(cycles=1, threshold=0.1, same_sign=False)
        >>> swap_in_rows(weight, ones, ones, ones, keep, stop).keep
        tensor([[ True, False,  True]])
    """
    if backends.choose([weight]) == "numba":
        from sparsecraft.kernels import mask_swaps_numba as compiled

        return compiled.swap_in_rows(weight, sums, spreads, norms, keep, stop)
    from sparsecraft.kernels import mask_swaps_torch as plain

    return plain.swap_in_rows(weight, sums, spreads, norms, keep, stop)


def swap_in_groups(
    weight: Tensor,
    sums: Tensor,
    spreads: Tensor,
    scores: Tensor,
    keep: Tensor,
    of: int,
    stop: Stop,
) -> Swaps:
    """Returns the masks after swaps within groups of `of` consecutive columns.

    Grown is the same entry as in `swap_in_rows`. Given up is the kept entry of lowest score in its
    group, whatever its sign; neither one given up nor one grown changes again. A group in which
    none is left costs the cycle.

    Args:
        weight: float32 (rows, columns).
        sums: float32 (columns,).
        spreads: float32 (columns,), above 0.
        scores: float32 (rows, columns), what the entries are worth.
        keep: bool (rows, columns); left as it is.
        of: Length of a group; it divides the columns.
        stop: When a row is done.
    """
    if backends.choose([weight]) == "numba":
        from sparsecraft.kernels import mask_swaps_numba as compiled

        return compiled.swap_in_groups(weight, sums, spreads, scores, keep, of, stop)
    from sparsecraft.kernels import mask_swaps_torch as plain

    return plain.swap_in_groups(weight, sums, spreads, scores, keep, of, stop)
