"""The loops of the compiled selection.

Counters are 32 bits wide inside a block of bounded length, because a 64-bit counter keeps the
compiler from using the full width of the vector units.
"""

from __future__ import annotations

import numpy as np

from sparsecraft.kernels.compiled import compiled, ordered

BLOCK = 1024
STRIP = 32
ROW_BITS = 11


@compiled
def has_nan(raw, infinity):
    """Returns whether an entry lies beyond infinity once its sign bit is cleared."""
    kind = raw.dtype.type
    magnitude = kind(~(kind(1) << (8 * raw.itemsize - 1)))
    for start in range(0, raw.size, BLOCK):
        block = raw[start : start + BLOCK]
        found = np.int32(0)
        for i in range(block.size):
            found = np.int32(found | np.int32(kind(block[i] & magnitude) > infinity))
        if found:
            return True
    return False


@compiled
def count_top(raw, clear, lowest, shift, counts):
    """Adds to the counts of the highest 16 bits of the keys, sign bit flipped."""
    kind = raw.dtype.type
    for i in range(raw.size):
        counts[(ordered(kind, raw[i], clear, lowest) >> shift) + 32768] += 1


@compiled
def count_below(raw, clear, lowest, shift, prefix, counts):
    """Adds to the counts of the 16 bits at `shift` of the keys whose higher bits are `prefix`."""
    kind = raw.dtype.type
    for start in range(0, raw.size, STRIP):
        strip = raw[start : start + STRIP]
        found = np.int32(0)
        for i in range(strip.size):
            key = ordered(kind, strip[i], clear, lowest)
            found = np.int32(found | np.int32(kind(key >> (shift + 16)) == prefix))
        if found:
            for i in range(strip.size):
                key = ordered(kind, strip[i], clear, lowest)
                if key >> (shift + 16) == prefix:
                    counts[(key >> shift) & 65535] += 1


@compiled
def collect(raw, clear, lowest, infinity, low, high, counts, inside, size):
    """Counts the keys around a bracket and collects those strictly inside.

    A strip is read once: its five counts share one integer, six bits each, which holds the 32 of
    a strip. One sum over the vector lanes then tells them all.

    Args:
        raw: Bits of the scores.
        clear: Bits that count.
        lowest: Smallest integer of the type.
        infinity: Key of infinity.
        low: Lower end of the bracket.
        high: Upper end of the bracket.
        counts: (5,), added to: keys above, at the upper end, inside, at the lower end, and NaN.
        inside: Room for the keys inside.
        size: How many keys it holds already.

    Returns:
        How many keys `inside` holds now, or -1 where it has no room.
    """
    kind = raw.dtype.type
    zero, one = np.int32(0), np.int32(1)
    for start in range(0, raw.size, STRIP):
        strip = raw[start : start + STRIP]
        packed = zero
        for i in range(strip.size):
            key = ordered(kind, strip[i], clear, lowest)
            packed = np.int32(packed + (one if key > high else zero))
            packed = np.int32(packed + (np.int32(1 << 6) if key == high else zero))
            packed = np.int32(packed + (np.int32(1 << 12) if key > low else zero))
            packed = np.int32(packed + (np.int32(1 << 18) if key == low else zero))
            packed = np.int32(packed + (np.int32(1 << 24) if abs(key) > infinity else zero))
        above = packed & 63
        at_high = (packed >> 6) & 63
        within = ((packed >> 12) & 63) - above - at_high
        counts[0] += above
        counts[1] += at_high
        counts[2] += within
        counts[3] += (packed >> 18) & 63
        counts[4] += packed >> 24
        if within > 0:
            if size + STRIP > inside.size:
                return -1
            for i in range(strip.size):
                key = ordered(kind, strip[i], clear, lowest)
                inside[size] = key
                size += np.intp((key > low) & (key < high))
    return size


@compiled
def mark(raw, clear, lowest, limit, out):
    """Writes where the keys reach the limit; returns how many equal it."""
    kind = raw.dtype.type
    ties = np.int32(0)
    for i in range(raw.size):
        key = ordered(kind, raw[i], clear, lowest)
        out[i] = key >= limit
        ties = np.int32(ties + np.int32(key == limit))
    return ties


@compiled
def mark_first(raw, clear, lowest, limit, kept, out):
    """Writes where the keys exceed the limit, or are among the first `kept` that equal it."""
    kind = raw.dtype.type
    for i in range(raw.size):
        key = ordered(kind, raw[i], clear, lowest)
        tie = key == limit
        out[i] = (key > limit) | (tie & (kept > 0))
        kept -= np.int64(tie)


@compiled
def row_threshold(pool, left, counts):
    """Returns what keeps the `left` largest keys: a limit, and how many ties with it to keep.

    Args:
        pool: The keys, at least one; overwritten.
        left: Rank from the top, from 1 to the number of keys.
        counts: Room for 2^ROW_BITS counts.

    Returns:
        (limit, ties): keys above the limit are kept, and the first `ties` that equal it. Where a
        lower bound of the kept keys is enough, it is the limit, and ties is -1: all are kept.
    """
    bits = 8 * pool.itemsize
    remaining = bits
    size = pool.size
    base = np.int64(0)
    while remaining > 0:
        width = min(remaining, ROW_BITS if size >= 1024 else (8 if size >= 64 else 4))
        bins = 1 << width
        offset = bins // 2 if remaining == bits else 0  # the sign, in the highest digit only
        remaining -= width
        counts[:bins] = 0
        for i in range(size):
            counts[((pool[i] >> remaining) + offset) & (bins - 1)] += 1
        digit = bins - 1
        while counts[digit] < left:
            left -= counts[digit]
            digit -= 1
        base = (base << width) + digit - offset
        if counts[digit] == left:
            return base << remaining, -1
        inside = 0
        for i in range(size):
            key = pool[i]
            pool[inside] = key
            inside += int(((key >> remaining) + offset) & (bins - 1) == digit)
        size = inside
    return base, left


@compiled
def mark_rows(raw, keep, clear, lowest, infinity, out):
    """Writes where the entries are among the `keep[row]` largest of their row.

    Returns:
        Whether there is a NaN; what was written is then not complete.
    """
    kind = raw.dtype.type
    cols = raw.shape[1]
    pool = np.empty(cols, dtype=raw.dtype)
    counts = np.empty(1 << ROW_BITS, dtype=np.int64)
    for r in range(raw.shape[0]):
        row = raw[r]
        marks = out[r]
        if has_nan(row, infinity):
            return True
        if keep[r] == 0 or keep[r] == cols:
            marks[:] = keep[r] > 0
            continue
        for i in range(cols):
            pool[i] = ordered(kind, row[i], clear, lowest)
        limit, ties = row_threshold(pool, keep[r], counts)
        if ties < 0:
            mark(row, clear, lowest, kind(limit), marks)
        else:
            mark_first(row, clear, lowest, kind(limit), ties, marks)
    return False
