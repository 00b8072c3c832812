"""The exact k-th largest key from histograms of 16 bits at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

DIGIT = 16
BINS = 1 << DIGIT

# (shift, prefix) -> counts of the digit `key >> shift` over all keys whose higher bits are
# `prefix`; over all keys, with the digit's sign bit flipped, where the prefix is None.
Histogram = Callable[[int, int | None], np.ndarray]


def radix_threshold(histogram: Histogram, bits: int, keep: int) -> tuple[int, int]:
    """Returns the `keep`-th largest key and how many of the entries equal to it are kept.

    Args:
        histogram: Counts one digit of the keys.
        bits: Width of a key; a multiple of 16.
        keep: Rank from the top, at least 1 and at most the number of keys.
    """
    digit, above = _digit(histogram(bits - DIGIT, None), keep)
    left = keep - above
    prefix = digit - BINS // 2
    for shift in range(bits - 2 * DIGIT, -1, -DIGIT):
        digit, above = _digit(histogram(shift, prefix), left)
        left -= above
        prefix = prefix * BINS + digit
    return prefix, left


def _digit(counts: np.ndarray, rank: int) -> tuple[int, int]:
    """Returns the digit that the entry of this rank from the top has, and how many lie above."""
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, rank))
    above = int(from_top[place - 1]) if place else 0
    return BINS - 1 - place, above
