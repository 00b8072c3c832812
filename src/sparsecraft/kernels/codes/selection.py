"""Which entries of a score matrix (rows, width) are selected, as starts of rows and columns.

A zero is never selected, nor a negative entry unless magnitudes count; so a row may get less than
its budget. Of equal entries the one of lower index is selected. All back ends give the same
answer.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor

from sparsecraft.kernels import backends
from sparsecraft.kernels.selection import keep_largest, keep_largest_per_row

Selected = tuple[Tensor, Tensor]

# Entries of a block of columns that is turned to rows at a time.
TURNED = 1 << 22


def select_rows(scores: Tensor, keep: int, *, absolute: bool = False) -> Selected:
    """Returns the `keep` largest entries of each row.

    Args:
        scores: (rows, width), of float16, bfloat16, float32 or float64.
        keep: At most this many of a row.
        absolute: Whether magnitudes count.

    Returns:
        int64 (rows + 1,) starts, and int64 (entries,) columns, ascending within a row.

    Raises:
        ValueError: If the scores hold NaN or are no float matrix, or `keep` is out of range.

    Example:
        >>> select_rows(torch.tensor([[1.0, -5.0, 3.0], [-1.0, 0.0, 2.0]]), 2)
        (tensor([0, 2, 3]), tensor([0, 2, 2]))
    """
    keep = _checked(scores, keep)
    if backends.choose([scores]) == "torch" or not keep or not scores.numel():
        return select_rows_reference(scores, keep, absolute=absolute)
    from sparsecraft.kernels.codes import selection_numba

    return selection_numba.select_rows(scores.detach(), keep, absolute)


def select_rows_reference(scores: Tensor, keep: int, *, absolute: bool = False) -> Selected:
    """Returns what `select_rows` does, by a mask of all entries."""
    ranks = scores.abs() if absolute else scores
    return _listed(keep_largest_per_row(ranks, keep) & (ranks > 0))


def select_whole(scores: Tensor, keep: int, *, absolute: bool = False) -> Selected:
    """Returns the `keep` largest entries of the whole matrix; see `select_rows`."""
    mask = keep_largest([scores], keep, absolute=absolute)[0]
    return _listed(mask.logical_and_(scores != 0 if absolute else scores > 0))


def select_columns(scores: Tensor, keep: Tensor, *, absolute: bool = False) -> Selected:
    """Returns the keep[j] largest entries of each column j; see `select_rows`.

    Args:
        scores: (rows, width).
        keep: int64 (width,).
        absolute: Whether magnitudes count.
    """
    mask = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
    step = max(1, TURNED // max(1, len(scores)))
    blocks = zip(scores.detach().split(step, 1), mask.split(step, 1), keep.split(step), strict=True)
    for block, marks, counts in blocks:
        ranks = (block.abs() if absolute else block).T.contiguous()
        marks.copy_((keep_largest_per_row(ranks, counts) & (ranks > 0)).T)
    return _listed(mask)


def _checked(scores: Tensor, keep: int) -> int:
    keep = operator.index(keep)
    if scores.dim() != 2:
        raise ValueError(f"scores must be (rows, width), not of shape {tuple(scores.shape)}.")
    if not 0 <= keep <= scores.shape[1]:
        raise ValueError(
            f"keep={keep} is not allowed: each row has {scores.shape[1]} entries to keep."
        )
    return keep


def _listed(mask: Tensor) -> Selected:
    starts = torch.zeros(len(mask) + 1, dtype=torch.int64, device=mask.device)
    starts[1:] = mask.sum(1).cumsum(0)
    return starts, mask.nonzero()[:, 1]
