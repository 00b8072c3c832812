"""A random order of many rows that is computed where it is asked for, and never held.

A Feistel network with keyed rounds is a permutation of the numbers below a power of four; numbers
that fall outside the count are sent through it again until they fall inside (cycle walking), which
is a permutation of the count. A hundred million rows are so shuffled as one, without a list.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sparsecraft.core import seeds

ROUNDS = 6
_ODD = np.uint64(0x9E3779B97F4A7C15)
_OTHER_ODD = np.uint64(0xD6E8FEB86659FD93)


class Permutation:
    """A random order of the numbers below `count`.

    Args:
        count: At least 1.
        seed: Of the order.
        labels: Further parts of the seed, such as the epoch.

    Example:
        >>> order = Permutation(10, 0, "epoch", 3)
        >>> sorted(order.of(torch.arange(10)).tolist())
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """

    def __init__(self, count: int, seed: int, *labels: object) -> None:
        self.count = count
        self._half = max(3, (max(count - 1, 1).bit_length() + 1) // 2)
        self._keys = [
            np.uint64(seeds.derive(seed, "order", *labels, turn)) for turn in range(ROUNDS)
        ]

    def of(self, places: Tensor) -> Tensor:
        """Returns int64 (n,): which numbers stand at these places (n,) of the order."""
        found = self._walk(places.numpy().astype(np.uint64))
        outside = np.flatnonzero(found >= self.count)
        while outside.size:
            found[outside] = self._walk(found[outside])
            outside = outside[found[outside] >= self.count]
        return torch.from_numpy(found.astype(np.int64))

    def _walk(self, numbers: np.ndarray) -> np.ndarray:
        half, mask = np.uint64(self._half), np.uint64((1 << self._half) - 1)
        left, right = numbers >> half, numbers & mask
        for key in self._keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        return (left << half) | right


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Returns hashes of the numbers: multiplications and shifts, wrapping at 64 bits."""
    numbers = (numbers ^ (numbers >> np.uint64(32))) * _ODD
    numbers = (numbers ^ (numbers >> np.uint64(29))) * _OTHER_ODD
    return numbers ^ (numbers >> np.uint64(32))
