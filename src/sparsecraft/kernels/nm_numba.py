"""N:M masks by ranks, in compiled loops, for tensors on the CPU.

The entries of 64 groups are transposed, so that place i of all of them lies side by side. An
entry's rank is how many of its group beat it; every pair of places is compared once, without a
branch, for 64 groups at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sparsecraft.kernels.compiled import compiled, ordered
from sparsecraft.kernels.order import NAN, SEGMENT, common_order
from sparsecraft.kernels.selection_numba import PER_THREAD
from sparsecraft.kernels.threads import in_threads, shares

LANES = 64


def ranked_groups(groups: Tensor, keep: int) -> Tensor:
    """Returns a bool mask of the `keep` largest entries of each row.

    Args:
        groups: (groups, of), floats without gradient; of is small.
        keep: From 0 to of.

    Raises:
        ValueError: If there is a NaN.
    """
    order = common_order([groups])
    _, lowest, infinity = order.scalars()
    out = torch.empty(groups.shape, dtype=torch.bool)
    height = max(1, SEGMENT // 8 // groups.shape[1])
    bands = list(zip(groups.split(height), out.split(height), strict=True))

    def work(share: Sequence[tuple[Tensor, Tensor]]) -> bool:
        return any(
            _mark_groups(
                order.raw(band).view(band.shape).numpy(), keep, lowest, infinity, marks.numpy()
            )
            for band, marks in share
        )

    if any(in_threads(work, shares(bands, [band.numel() for band, _ in bands], PER_THREAD))):
        raise ValueError(NAN)
    return out


@compiled
def _mark_groups(raw, keep, lowest, infinity, out):
    """Writes where fewer than `keep` entries of the row beat an entry; returns whether NaN."""
    kind = raw.dtype.type
    every = kind(-1)
    count, of = raw.shape
    keys = np.zeros((of, LANES), dtype=raw.dtype)
    ranks = np.empty((of, LANES), dtype=raw.dtype)
    for start in range(0, count, LANES):
        block = raw[start : start + LANES]
        for g in range(block.shape[0]):
            for i in range(of):
                keys[i, g] = block[g, i]
        nans = np.int32(0)
        for i in range(of):
            for g in range(LANES):
                key = ordered(kind, keys[i, g], every, lowest)
                nans = np.int32(nans | np.int32((key > infinity) | (key < -infinity)))
                keys[i, g] = key
                ranks[i, g] = kind(of - 1 - i)
        if nans:
            return True
        # At first each entry is taken to lose against all later ones. An equal later one loses.
        for i in range(of):
            for j in range(i + 1, of):
                for g in range(LANES):
                    wins = kind(keys[i, g] >= keys[j, g])
                    ranks[i, g] = kind(ranks[i, g] - wins)
                    ranks[j, g] = kind(ranks[j, g] + wins)
        marks = out[start : start + LANES]
        for g in range(marks.shape[0]):
            for i in range(of):
                marks[g, i] = ranks[i, g] < keep
    return False
