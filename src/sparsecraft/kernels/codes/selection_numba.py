"""The largest entries of each row in compiled loops: a pass of maxima, then a few candidates.

A row is cut into strips of `lanes` entries, laid on top of each other; the pass takes the maximum
of each lane over all strips, many lanes at a time. The k-th largest of the maxima is a floor that
at least k entries reach, and only lanes whose maximum reaches it can hold them. Floats are
compared by their bits, so every type is exact (`sparsecraft.kernels.order`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sparsecraft.kernels.compiled import compiled
from sparsecraft.kernels.order import NAN, common_order
from sparsecraft.kernels.threads import in_threads, shares

# Strips of a row: more of them leave fewer maxima, but more candidates.
STRIPS = 16
# Lanes for each entry that is kept, at least.
LANES_PER_KEPT = 6
# Entries of a row that pay for a thread.
PER_THREAD = 1 << 18


def select_rows(scores: Tensor, keep: int, absolute: bool) -> tuple[Tensor, Tensor]:
    """Returns starts and columns; see `selection.select_rows`.

    Args:
        scores: (rows, width), not empty, without gradient.
        keep: From 1 to the width.
        absolute: Whether magnitudes count.

    Raises:
        ValueError: If there is a NaN.
    """
    rows, width = scores.shape
    order = common_order([scores], absolute)
    clear, _, infinity = order.scalars()
    raw = order.raw(scores).view(rows, width).numpy()
    columns = torch.empty(rows, keep, dtype=torch.int64)
    counts = torch.empty(rows, dtype=torch.int64)
    strips = max(1, min(STRIPS, width // (LANES_PER_KEPT * keep)))
    lanes = -(-width // strips)
    arrays = columns.numpy(), counts.numpy()
    bands = _bands(rows, width)

    def work(share: Sequence[tuple[int, int]]) -> bool:
        return _select(raw, keep, lanes, clear, infinity, *arrays, share[0][0], share[-1][1])

    sizes = [(last - first) * width for first, last in bands]
    if any(in_threads(work, shares(bands, sizes, PER_THREAD))):
        raise ValueError(NAN)
    starts = torch.zeros(rows + 1, dtype=torch.int64)
    torch.cumsum(counts, 0, out=starts[1:])
    if int(starts[-1]) == columns.numel():
        return starts, columns.view(-1)
    return starts, columns[torch.arange(keep) < counts[:, None]]


def _bands(rows: int, width: int) -> list[tuple[int, int]]:
    step = max(1, PER_THREAD // width)
    return [(first, min(rows, first + step)) for first in range(0, rows, step)]


@compiled
def _select(raw, keep, lanes, clear, infinity, columns, counts, first, last):
    """Writes the columns of rows first to last; returns whether there is a NaN."""
    kind = raw.dtype.type
    width = raw.shape[1]
    maxima = np.empty(lanes, dtype=raw.dtype)
    places = np.empty(lanes, dtype=np.int64)
    heap = np.empty(keep, dtype=raw.dtype)
    found = np.empty(width, dtype=np.int64)
    keys = np.empty(width, dtype=raw.dtype)
    for i in range(first, last):
        row = raw[i]
        if _maxima(row, clear, infinity, maxima):
            return True
        floor = _kth(maxima, lanes, keep, heap)
        count = 0
        for lane in range(lanes):
            places[count] = lane
            count += maxima[lane] >= floor
        candidates = 0
        for start in range(0, width, lanes):
            for place in range(count):
                column = start + places[place]
                if column < width:
                    key = kind(row[column] & clear)
                    if key >= floor:
                        found[candidates] = column
                        keys[candidates] = key
                        candidates += 1
        counts[i] = _take(found, keys, candidates, keep, heap, columns[i])
    return False


@compiled
def _maxima(row, clear, infinity, maxima):
    """Writes each lane's largest key, at least 0; returns whether the row holds a NaN."""
    kind = row.dtype.type
    magnitude = kind(~kind(np.int64(1) << (8 * row.itemsize - 1)))
    maxima[:] = 0
    largest = kind(0)
    for start in range(0, row.size, maxima.size):
        strip = row[start : start + maxima.size]
        for lane in range(strip.size):
            maxima[lane] = max(maxima[lane], kind(strip[lane] & clear))
            largest = max(largest, kind(strip[lane] & magnitude))
    return largest > infinity


@compiled
def _kth(keys, count, keep, heap):
    """Returns the keep-th largest of the first `count` keys, at least 1 (the least positive)."""
    least = keys.dtype.type(1)
    heap[:] = least
    for place in range(count):
        if keys[place] > heap[0]:
            _replace_least(heap, keep, keys[place])
    return heap[0]


@compiled
def _take(found, keys, candidates, keep, heap, out):
    """Writes the columns of the largest candidates, of ties the first; returns how many."""
    least = _kth(keys, candidates, keep, heap)
    above = 0
    for place in range(candidates):
        above += keys[place] > least
    ties = keep - above
    taken = 0
    for place in range(candidates):
        if keys[place] > least or (keys[place] == least and ties > 0):
            ties -= keys[place] == least
            out[taken] = found[place]
            taken += 1
    return taken


@compiled
def _replace_least(heap, size, key):
    """Puts a key in the place of the least, which lies at the top of the heap."""
    hole = 0
    while True:
        child = 2 * hole + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= key:
            break
        heap[hole] = heap[child]
        hole = child
    heap[hole] = key
