"""The sparse products in compiled loops, for float32 and float64 tensors on the CPU.

Rows are shared out to threads by the entries that they hold. Four entries of a row are worked on
at once: four rows of the weight are then on their way from memory, and the sums are read and
written a quarter as often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sparsecraft.kernels.codes.memory import empty
from sparsecraft.kernels.compiled import compiled, compiled_sums
from sparsecraft.kernels.threads import in_threads, shares

# Multiply-adds that pay for a thread.
PER_THREAD = 1 << 20
# Runs of rows that are shared out, for each thread.
RUNS = 16


def weighted_sums(starts: Tensor, columns: Tensor, values: Tensor, weight: Tensor) -> Tensor:
    """Returns (rows, d); see `primitives.weighted_sums`."""
    out = empty((len(starts) - 1, weight.shape[1]), weight.dtype, weight.device)
    arrays = [t.detach().numpy() for t in (starts, columns, values, weight, out)]
    _over_rows(lambda first, last: _weighted_sums(*arrays, first, last), arrays[0], out.shape[1])
    return out


def sampled_products(starts: Tensor, columns: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Returns (entries,); see `primitives.sampled_products`."""
    out = torch.empty(len(columns), dtype=weight.dtype)
    arrays = [t.detach().numpy() for t in (starts, columns, x, weight, out)]
    _over_rows(lambda first, last: _sampled(*arrays, first, last), arrays[0], weight.shape[1])
    return out


def by_column(starts: Tensor, columns: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns starts, rows and entries; see `primitives.by_column`."""
    firsts = torch.zeros(width + 1, dtype=torch.int64)
    rows, entries = torch.empty_like(columns), torch.empty_like(columns)
    _by_column(*(t.numpy() for t in (starts, columns, firsts, rows, entries)))
    return firsts, rows, entries


def _over_rows(work: Callable[[int, int], None], starts: np.ndarray, width: int) -> None:
    """Runs work(first, last) over all rows, in threads where that pays."""
    rows = len(starts) - 1
    if not rows:
        return
    runs = min(rows, RUNS * torch.get_num_threads()) if torch.get_num_threads() > 1 else 1
    # A row costs its entries, and one more for what is written even if it holds none.
    ends = np.searchsorted(
        starts + np.arange(rows + 1), np.linspace(0, starts[-1] + rows, runs + 1)[1:-1]
    )
    edges = np.unique(np.concatenate([[0], ends, [rows]]))
    bands = [(int(first), int(last)) for first, last in pairwise(edges)]
    sizes = [int(starts[last] - starts[first] + last - first) * width for first, last in bands]

    def share(part: Sequence[tuple[int, int]]) -> None:
        work(part[0][0], part[-1][1])

    in_threads(share, shares(bands, sizes, PER_THREAD))


@compiled_sums
def _weighted_sums(starts, columns, values, weight, out, first, last):
    width = weight.shape[1]
    for i in range(first, last):
        sums = out[i]
        sums[:] = 0
        begin, end = starts[i], starts[i + 1]
        fours = begin + (end - begin) // 4 * 4
        for e in range(begin, fours, 4):
            v0, v1, v2, v3 = values[e], values[e + 1], values[e + 2], values[e + 3]
            w0, w1 = weight[columns[e]], weight[columns[e + 1]]
            w2, w3 = weight[columns[e + 2]], weight[columns[e + 3]]
            for d in range(width):
                sums[d] += v0 * w0[d] + v1 * w1[d] + v2 * w2[d] + v3 * w3[d]
        for e in range(fours, end):
            v0 = values[e]
            w0 = weight[columns[e]]
            for d in range(width):
                sums[d] += v0 * w0[d]


@compiled_sums
def _sampled(starts, columns, x, weight, out, first, last):
    width = weight.shape[1]
    zero = weight.dtype.type(0)
    for i in range(first, last):
        row = x[i]
        begin, end = starts[i], starts[i + 1]
        fours = begin + (end - begin) // 4 * 4
        for e in range(begin, fours, 4):
            w0, w1 = weight[columns[e]], weight[columns[e + 1]]
            w2, w3 = weight[columns[e + 2]], weight[columns[e + 3]]
            s0, s1, s2, s3 = zero, zero, zero, zero
            for d in range(width):
                s0 += row[d] * w0[d]
                s1 += row[d] * w1[d]
                s2 += row[d] * w2[d]
                s3 += row[d] * w3[d]
            out[e], out[e + 1], out[e + 2], out[e + 3] = s0, s1, s2, s3
        for e in range(fours, end):
            w0 = weight[columns[e]]
            s0 = zero
            for d in range(width):
                s0 += row[d] * w0[d]
            out[e] = s0


@compiled
def _by_column(starts, columns, firsts, rows, entries):
    """Counts the entries of each column, then deals them out in order."""
    width = firsts.size - 1
    for e in range(columns.size):
        firsts[columns[e] + 1] += 1
    for j in range(width):
        firsts[j + 1] += firsts[j]
    place = firsts.copy()
    for i in range(starts.size - 1):
        for e in range(starts[i], starts[i + 1]):
            j = columns[e]
            rows[place[j]] = i
            entries[place[j]] = e
            place[j] += 1
