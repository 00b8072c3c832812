"""Exact selection in compiled loops, for tensors on the CPU.

The threshold of many entries takes one pass. A sample brackets it: the pass counts what lies
above the bracket and collects the few entries inside, whose order statistic is then the answer.
The counts tell whether the bracket was right, so the result is exact; where it was wrong, the
histograms decide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sparsecraft.kernels import loops_numba as loops
from sparsecraft.kernels.order import NAN, SEGMENT, Order
from sparsecraft.kernels.radix import BINS, radix_threshold
from sparsecraft.kernels.threads import in_threads, shares

# Below this many entries the histograms alone are quick enough.
BRACKET_FROM = 1 << 22
SAMPLE = 1 << 18
# At most one entry in so many is sampled.
STEP = 64
# Half-width of the bracket, in standard deviations of the sample's rank: misses 3 in 1000.
WIDTH = 3.0
# The collected entries may take this share of the scores' bytes; joining them takes it again.
COLLECTED = 0.02
# A thread is started for each so many entries.
PER_THREAD = 1 << 18


def check_nan(pieces: Sequence[Tensor], order: Order) -> None:
    """Raises ValueError if a piece holds a NaN."""
    infinity = order.scalars()[2]

    def work(share: Sequence[Tensor]) -> bool:
        return any(loops.has_nan(_raw(piece, order), infinity) for piece in share)

    if any(in_threads(work, _dealt(pieces))):
        raise ValueError(NAN)


def threshold(pieces: Sequence[Tensor], keep: int, order: Order) -> tuple[int, int]:
    """Returns the `keep`-th largest key and how many of the entries equal to it are kept.

    Args:
        pieces: The scores.
        keep: Rank from the top, from 1 to the number of entries.
        order: How the entries are compared.

    Raises:
        ValueError: If there is a NaN.
    """
    if sum(piece.numel() for piece in pieces) >= BRACKET_FROM:
        found = _bracketed(pieces, keep, order)
        if found is not None:
            return found
    check_nan(pieces, order)
    return radix_threshold(
        lambda shift, prefix: _histogram(pieces, shift, prefix, order), order.bits, keep
    )


def mark(pieces: Sequence[Tensor], outs: Sequence[Tensor], key: int, order: Order) -> list[int]:
    """Writes where the entries reach the key; returns how many equal it in each piece.

    Args:
        pieces: Scores.
        outs: A flat bool tensor for each piece, overwritten.
        key: The threshold.
        order: How the entries are compared.
    """
    clear, lowest, _ = order.scalars()
    limit = clear.dtype.type(key)

    def work(share: Sequence[tuple[Tensor, Tensor]]) -> list[int]:
        return [
            loops.mark(_raw(piece, order), clear, lowest, limit, out.numpy())
            for piece, out in share
        ]

    pairs = list(zip(pieces, outs, strict=True))
    dealt = shares(pairs, [piece.numel() for piece in pieces], PER_THREAD)
    return [ties for share in in_threads(work, dealt) for ties in share]


def mark_first(piece: Tensor, out: Tensor, key: int, kept: int, order: Order) -> None:
    """Writes where the entries exceed the key, or are among the first `kept` that equal it."""
    clear, lowest, _ = order.scalars()
    limit = clear.dtype.type(key)
    loops.mark_first(_raw(piece, order), clear, lowest, limit, kept, out.numpy())


def keep_rows(scores: Tensor, keep: Tensor, order: Order) -> Tensor:
    """Returns the mask of the `keep[row]` largest entries of each row.

    Args:
        scores: (rows, cols).
        keep: (rows,), int64, each from 0 to cols.
        order: How the entries are compared.

    Raises:
        ValueError: If there is a NaN.
    """
    rows, cols = scores.shape
    out = torch.empty((rows, cols), dtype=torch.bool)
    height = max(1, SEGMENT // 8 // max(1, cols))
    bands = list(zip(*(part.split(height) for part in (scores, keep, out)), strict=True))

    def work(share: Sequence[tuple[Tensor, Tensor, Tensor]]) -> bool:
        return any(
            loops.mark_rows(
                _raw(band, order).reshape(band.shape),
                counts.numpy(),
                *order.scalars(),
                marks.numpy(),
            )
            for band, counts, marks in share
        )

    if any(in_threads(work, shares(bands, [band.numel() for band, _, _ in bands], PER_THREAD))):
        raise ValueError(NAN)
    return out


def _histogram(
    pieces: Sequence[Tensor], shift: int, prefix: int | None, order: Order
) -> np.ndarray:
    clear, lowest, _ = order.scalars()
    above = None if prefix is None else clear.dtype.type(prefix)

    def work(share: Sequence[Tensor]) -> np.ndarray:
        counts = np.zeros(BINS, dtype=np.int64)
        for piece in share:
            if above is None:
                loops.count_top(_raw(piece, order), clear, lowest, shift, counts)
            else:
                loops.count_below(_raw(piece, order), clear, lowest, shift, above, counts)
        return counts

    return np.sum(in_threads(work, _dealt(pieces)), axis=0)


def _bracketed(pieces: Sequence[Tensor], keep: int, order: Order) -> tuple[int, int] | None:
    """Returns what `threshold` does, or None where the bracket misses or holds too much."""
    numel = sum(piece.numel() for piece in pieces)
    clear, lowest, infinity = order.scalars()
    low, high = _bracket(pieces, keep / numel, order)
    dealt = _dealt(pieces)
    room = int(COLLECTED * numel) // len(dealt)

    def work(share: Sequence[Tensor]) -> tuple[np.ndarray, np.ndarray | None]:
        counts = np.zeros(5, dtype=np.int64)
        inside = np.empty(room, dtype=clear.dtype)
        size = 0
        for piece in share:
            size = loops.collect(
                _raw(piece, order), clear, lowest, infinity, low, high, counts, inside, size
            )
            if size < 0:
                return counts, None
        return counts, inside[:size]

    found = in_threads(work, dealt)
    collected = [inside for _, inside in found if inside is not None]
    if len(collected) < len(found):
        return None
    above, at_high, within, at_low, nans = np.sum([counts for counts, _ in found], axis=0).tolist()
    if nans:
        raise ValueError(NAN)
    rank = keep - above
    if 0 < rank <= at_high:
        return int(high), rank
    if at_high < rank <= at_high + within:
        return _ranked(np.concatenate(collected), rank - at_high)
    if at_high + within < rank <= at_high + within + at_low:
        return int(low), rank - at_high - within
    return None


def _ranked(keys: np.ndarray, rank: int) -> tuple[int, int]:
    """Returns the key of this rank from the top, and how many equal to it rank that high."""
    place = keys.size - rank
    keys.partition(place)
    return int(keys[place]), int(np.count_nonzero(keys[place:] == keys[place]))


def _bracket(
    pieces: Sequence[Tensor], density: float, order: Order
) -> tuple[np.integer, np.integer]:
    """Returns two keys that very likely enclose the threshold, from evenly spaced entries."""
    infinity = order.scalars()[2]
    # An odd step does not stay in the same columns of a matrix whose width is a power of two.
    step = max(STEP, sum(piece.numel() for piece in pieces) // SAMPLE) | 1
    sample = np.sort(np.concatenate([_every(piece, step, order) for piece in pieces]))
    centre = sample.size * density
    reach = WIDTH * math.sqrt(sample.size * density * (1 - density)) + WIDTH
    below, above = math.ceil(centre + reach), math.floor(centre - reach)
    low = sample[-below] if below <= sample.size else -infinity
    high = sample[-above] if above >= 1 else infinity
    return low, high


def _every(piece: Tensor, step: int, order: Order) -> np.ndarray:
    flat = piece if piece.dim() == 1 else piece.reshape(-1)
    return order.keys(flat[::step]).numpy()


def _raw(piece: Tensor, order: Order) -> np.ndarray:
    return order.raw(piece).numpy()


def _dealt(pieces: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    return shares(pieces, [piece.numel() for piece in pieces], PER_THREAD)
