"""The root of a sum of clipped ramps by selection, in compiled loops: linear time.

As quickselect does, each round takes a breakpoint as pivot, sums the ramps there, and so learns on
which side the root lies. Ramps without a breakpoint left between the two bounds are settled: they
stand at 0, at 1 or rise along the whole interval, and go into running sums. With the median of a
few random breakpoints as pivot each round leaves about half of the ramps. Of many ramps a sample
gives the bounds to begin with, so that one pass settles nearly all of them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sparsecraft.kernels.compiled import compiled

# Breakpoints of which the pivot is the median.
DRAWS = 9
# From so many ramps on, so many are sampled.
SAMPLE_FROM = 1 << 16
SAMPLE = 1 << 13
# Half-width of the sampled bracket in standard deviations; if it misses, only time is lost.
WIDTH = 3.0
SEED = 0x9E3779B97F4A7C15


def selected_root(slopes: Tensor, offsets: Tensor, keep: Tensor) -> Tensor:
    """Returns the root of each row; see `sparsecraft.kernels.envelope.ramp_root`."""
    roots = torch.empty(len(keep), dtype=torch.float64)
    slope_rows = slopes.detach().contiguous().numpy()
    offset_rows = offsets.detach().contiguous().numpy()
    _roots(slope_rows, offset_rows, keep.contiguous().numpy(), roots.numpy())
    return roots


@compiled
def _roots(slopes, offsets, keep, out):
    """Writes the root of each row."""
    rows, size = slopes.shape
    stride = 1 if offsets.shape[1] == size else 0
    # Room for all ramps; of many, only the few pages that are written to take memory.
    rising = np.empty(size)
    lifted = np.empty(size)
    drawn = np.empty(DRAWS)
    for r in range(rows):
        positive = 0
        last = 0.0
        for j in range(size):
            slope = slopes[r, j]
            end = (1 + offsets[r, j * stride]) / slope if slope > 0 else np.inf
            if end < np.inf:
                positive += 1
                last = max(last, end)
        if positive <= keep[r]:
            out[r] = last if positive == keep[r] else np.inf
        else:
            out[r] = _root(slopes[r], offsets[r], stride, keep[r], rising, lifted, drawn)


@compiled
def _root(slopes, offsets, stride, keep, rising, lifted, drawn):
    """Returns the root of a row with more than `keep` positive ramps."""
    low, high = 0.0, np.inf
    if slopes.size >= SAMPLE_FROM:
        low, high = _bracket(slopes, offsets, stride, keep, rising, lifted, drawn)
    full, count = 0, 0
    slope_sum, offset_sum = 0.0, 0.0
    for j in range(slopes.size):
        slope, offset = slopes[j], offsets[j * stride]
        # Infinity times zero is no number, and fails every comparison but the last.
        below, above = low * slope - offset, high * slope - offset
        if below >= 1:
            full += 1
        elif below >= 0 and above <= 1:
            slope_sum += slope
            offset_sum += offset
        elif above > 0:
            rising[count] = slope
            lifted[count] = offset
            count += 1
    return _select(
        rising, lifted, count, keep, low, high, float(full), slope_sum, offset_sum, drawn
    )


@compiled
def _bracket(slopes, offsets, stride, keep, rising, lifted, drawn):
    """Returns bounds of the root, guessed from a sample and put right by the sums there."""
    share = keep / slopes.size
    spread = WIDTH * np.sqrt(SAMPLE * share * (1 - share))
    bounds = (
        _sampled(slopes, offsets, stride, SAMPLE * share - spread, rising, lifted, drawn),
        _sampled(slopes, offsets, stride, SAMPLE * share + spread, rising, lifted, drawn),
    )
    low, high = bounds
    at_low, at_high = 0.0, 0.0
    for j in range(slopes.size):
        slope, offset = slopes[j], offsets[j * stride]
        if slope > 0:
            at_low += min(max(low * slope - offset, 0.0), 1.0)
            at_high += min(max(high * slope - offset, 0.0), 1.0)
    if at_low >= keep:
        return 0.0, low
    if at_high < keep:
        return high, np.inf
    return low, high


@compiled
def _sampled(slopes, offsets, stride, keep, rising, lifted, drawn):
    """Returns where the ramps of the sample sum to `keep`; 0 or infinity where they never do."""
    if keep <= 0:
        return 0.0
    state = np.uint64(SEED)
    count = 0
    for _ in range(SAMPLE):
        state = _next(state)
        j = np.int64(state % np.uint64(slopes.size))
        if slopes[j] > 0:
            rising[count] = slopes[j]
            lifted[count] = offsets[j * stride]
            count += 1
    if count <= keep:
        return np.inf
    return _select(rising, lifted, count, keep, 0.0, np.inf, 0.0, 0.0, 0.0, drawn)


@compiled
def _select(slopes, offsets, count, keep, low, high, full, slope_sum, offset_sum, drawn):
    """Returns the root between the bounds.

    Args:
        slopes: Of the ramps that are not settled; overwritten.
        offsets: Of the same; overwritten.
        count: How many there are.
        keep: What the sum shall be.
        low: Where the sum is below it.
        high: Where it is not.
        full: Settled ramps that stand at 1.
        slope_sum: Slopes of those that rise from low to high.
        offset_sum: Their offsets.
        drawn: (DRAWS,), room.
    """
    state = np.uint64(SEED)
    while True:
        left = 0
        for j in range(count):
            slope, offset = slopes[j], offsets[j]
            begin, end = offset / slope, (1 + offset) / slope
            if end <= low:
                full += 1
            elif begin <= low and end >= high:
                slope_sum += slope
                offset_sum += offset
            elif begin < high:
                slopes[left] = slope
                offsets[left] = offset
                left += 1
        count = left
        if count == 0:
            break
        state, pivot = _pivot(slopes, offsets, count, low, high, state, drawn)
        total = full + slope_sum * pivot - offset_sum
        for j in range(count):
            total += min(max(pivot * slopes[j] - offsets[j], 0.0), 1.0)
        if total >= keep:
            high = pivot
        else:
            low = pivot
    if slope_sum <= 0:
        return low
    return min(max((keep - full + offset_sum) / slope_sum, low), high)


@compiled
def _pivot(slopes, offsets, count, low, high, state, drawn):
    """Returns the next random state and the median of random breakpoints between the bounds."""
    for d in range(DRAWS):
        state = _next(state)
        j = np.int64(state % np.uint64(count))
        begin, end = offsets[j] / slopes[j], (1 + offsets[j]) / slopes[j]
        # A ramp that is not settled has one breakpoint inside, or both.
        first = begin > low
        if first and end < high:
            first = (state >> np.uint64(40)) & np.uint64(1) == 0
        drawn[d] = begin if first else end
    drawn.sort()
    return state, drawn[DRAWS // 2]


@compiled
def _next(state):
    """Returns the next state of Marsaglia's xorshift: no shared state, and every run is alike."""
    state ^= state << np.uint64(13)
    state ^= state >> np.uint64(7)
    return state ^ (state << np.uint64(17))
