"""Which entries of a score matrix (rows, width) are selected, as starts of rows and columns.

A zero is never selected, nor a negative entry unless magnitudes count; so a row may get less than
its budget. Of equal entries the one of lower index is selected.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsecraft.kernels.selection import keep_largest, keep_largest_per_row

Selected = tuple[Tensor, Tensor]


def select_rows(scores: Tensor, keep: int, *, absolute: bool = False) -> Selected:
    """Returns the `keep` largest entries of each row.

    Args:
        scores: (rows, width).
        keep: At most this many of a row.
        absolute: Whether magnitudes count.

    Returns:
        int64 (rows + 1,) starts, and int64 (entries,) columns, ascending within a row.
    """
    ranks = scores.abs() if absolute else scores
    return _listed(keep_largest_per_row(ranks, keep) & (ranks > 0))


def select_whole(scores: Tensor, keep: int, *, absolute: bool = False) -> Selected:
    """Returns the `keep` largest entries of the whole matrix; see `select_rows`."""
    ranks = scores.abs() if absolute else scores
    return _listed(keep_largest([ranks], keep)[0] & (ranks > 0))


def select_columns(scores: Tensor, keep: Tensor, *, absolute: bool = False) -> Selected:
    """Returns the keep[j] largest entries of each column j; see `select_rows`.

    Args:
        scores: (rows, width).
        keep: int64 (width,).
        absolute: Whether magnitudes count.
    """
    ranks = scores.abs() if absolute else scores
    mask = keep_largest_per_row(ranks.T.contiguous(), keep).T
    return _listed(mask & (ranks > 0))


def _listed(mask: Tensor) -> Selected:
    starts = torch.zeros(len(mask) + 1, dtype=torch.int64, device=mask.device)
    starts[1:] = mask.sum(1).cumsum(0)
    return starts, mask.nonzero()[:, 1]
