"""Which row of a stream lies where in a buffer, and in which order the buffer is read.

Rows are read in random order; where half of them are gone, new ones take their places, and what is
there is shuffled anew. Here are numbers only. What a buffer held at some step follows from the
counts of rows and the seed, so a reader that goes on finds it out without running the model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsecraft.core import seeds


class MixingBuffer:
    """The places of a buffer.

    Args:
        slots: Rows that it holds at most.
        seed: Of the order.
        labels: Further parts of the seed, such as the rank.

    Example:
        >>> buffer = MixingBuffer(4, 0)
        >>> buffer.add(7, 3).tolist(), len(buffer), buffer.room
        ([0, 1, 2], 3, 1)
        >>> buffer.shuffle()
        >>> sorted(buffer.take(3).tolist()), len(buffer), buffer.room
        ([0, 1, 2], 0, 4)
    """

    def __init__(self, slots: int, seed: int, *labels: object) -> None:
        self.slots = slots
        self._seed, self._labels = seed, labels
        self._numbers = torch.full((slots,), -1, dtype=torch.int64)
        self._rows = torch.zeros(slots, dtype=torch.int64)
        self._order = torch.empty(0, dtype=torch.int64)
        self._free = torch.arange(slots)
        self._taken: list[Tensor] = []
        self._shuffles = 0

    def __len__(self) -> int:
        return len(self._order)

    @property
    def room(self) -> int:
        """Rows that can be added."""
        return self.slots - len(self)

    def add(self, number: int, rows: int) -> Tensor:
        """Returns the slots (rows,) of new rows, those of one piece of the stream.

        Args:
            number: Of the piece.
            rows: At most `room`.
        """
        self._free, self._taken = torch.cat([self._free, *self._taken]), []
        slots, self._free = self._free[:rows], self._free[rows:]
        self._numbers[slots], self._rows[slots] = number, torch.arange(rows)
        self._order = torch.cat([self._order, slots])
        return slots

    def shuffle(self) -> None:
        """Puts what is there into a new random order."""
        stream = seeds.generator(self._seed, "mixing", *self._labels, self._shuffles)
        self._order = self._order[torch.randperm(len(self), generator=stream)]
        self._shuffles += 1

    def take(self, count: int) -> Tensor:
        """Returns the next slots (count,), whose rows are to be read before others are added."""
        slots, self._order = self._order[:count], self._order[count:]
        self._taken.append(slots)
        return slots

    def origins(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Returns of slots (n,) the pieces that their rows are of, and their numbers in them."""
        return self._numbers[slots], self._rows[slots]

    def held(self) -> Tensor:
        """Returns the slots (rows left,) that are still to be read."""
        return self._order
