"""Removing entries of a block of columns one after another, each repaired by those to its right."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsecraft.kernels import backends
from sparsecraft.kernels.nm import nm_mask


def remove_and_repair(
    weight: Tensor, factor: Tensor, keep: Tensor, groups: tuple[int, int] | None = None
) -> Tensor:
    """Removes what is not kept, from left to right, and returns the errors this leaves.

    For each column i, the removed entries w give the errors e = w / U_ii, and every column j >= i
    loses e U_ij. The compiled form and the plain one differ by rounding alone.

    Args:
        weight: (rows, columns) float32, changed in place.
        factor: (columns, columns) float32, upper triangular: U.
        keep: bool (rows, columns); given, or with `groups` decided here and written.
        groups: (keep, of): of each `of` columns the `keep` entries of largest w^2 / U_jj^2 stay,
            by the weights as they are when the first of them is reached.

    Returns:
        (rows, columns) errors, zero where kept.

    Raises:
        ValueError: If the weight is not float32.

    Reference:
        Frantar, Alistarh, 2023, arXiv 2301.00774, algorithm 1, its inner loop.
    """
    if weight.dtype != torch.float32:
        raise ValueError(f"the weight is {weight.dtype}; removal with repair needs float32")
    if backends.choose([weight]) == "numba":
        from sparsecraft.kernels.repair_numba import remove_and_repair_rows

        return remove_and_repair_rows(weight, factor, keep, groups)
    return _column_by_column(weight, factor, keep, groups)


def _column_by_column(
    weight: Tensor, factor: Tensor, keep: Tensor, groups: tuple[int, int] | None
) -> Tensor:
    diagonal = factor.diagonal()
    errors = torch.zeros_like(weight)
    for column in range(weight.shape[1]):
        if groups is not None and column % groups[1] == 0:
            ahead = slice(column, column + groups[1])
            loss = weight[:, ahead].square() / diagonal[ahead].square()
            keep[:, ahead] = nm_mask(loss, *groups)
        removed = weight[:, column].masked_fill(keep[:, column], 0)
        errors[:, column] = removed / diagonal[column]
        weight[:, column:].addr_(errors[:, column], factor[column, column:], alpha=-1)
    return errors
