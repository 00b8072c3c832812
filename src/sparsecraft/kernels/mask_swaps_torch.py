"""Swaps in plain PyTorch, all rows at once, on any device: the reference for the compiled loops."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecraft.kernels.mask_swaps import Stop, Swaps


@dataclass
class Queues:
    """Candidates of every row in the order in which they are taken: a line for losses <= 0, one
    for losses above.

    Args:
        order: int64 (2, rows, columns), columns in their order, candidates first.
        left: int64 (2, rows), how many are candidates.
    """

    order: Tensor
    left: Tensor

    def __post_init__(self) -> None:
        self.taken = torch.zeros_like(self.left)

    @classmethod
    def of(cls, worth: Tensor, candidates: Tensor) -> Queues:
        """Returns the queues of the highest worth first, of equal ones the first column.

        Args:
            worth: (2, rows, columns).
            candidates: bool of the same shape.
        """
        ranked = worth.masked_fill(~candidates, -torch.inf)
        order = ranked.sort(-1, descending=True, stable=True).indices
        return cls(order, candidates.sum(-1))

    def take(self, side: Tensor) -> tuple[Tensor, Tensor]:
        """Returns each row's next column of its side, and whether there was one.

        Args:
            side: int64 (rows,), 0 or 1.
        """
        rows = torch.arange(side.numel(), device=side.device)
        place = self.taken[side, rows]
        there = place < self.left[side, rows]
        column = self.order[side, rows, place.clamp(max=self.order.shape[-1] - 1)]
        self.taken[side, rows] += 1
        return column, there


def swap_in_rows(
    weight: Tensor, sums: Tensor, spreads: Tensor, norms: Tensor, keep: Tensor, stop: Stop
) -> Swaps:
    """Returns the masks after swaps of any two entries of a row; see `mask_swaps`."""
    shares = weight * sums
    cost = weight.abs() * norms
    opposite = torch.stack([shares > 0, shares < 0])
    given_up = Queues.of(-cost.expand(2, -1, -1), opposite & keep)

    def partner(side: Tensor, grown: Tensor) -> tuple[Tensor, Tensor]:
        return given_up.take(side)

    return _swap(shares, spreads, keep, stop, partner)


def swap_in_groups(
    weight: Tensor,
    sums: Tensor,
    spreads: Tensor,
    scores: Tensor,
    keep: Tensor,
    of: int,
    stop: Stop,
) -> Swaps:
    """Returns the masks after swaps within groups of columns; see `mask_swaps`."""
    rows = torch.arange(weight.shape[0], device=weight.device)
    usable = scores.masked_fill(~keep, torch.inf).view(weight.shape[0], -1, of)

    def partner(side: Tensor, grown: Tensor) -> tuple[Tensor, Tensor]:
        group = grown // of
        members = usable[rows, group]
        place = members.argmin(1)
        there = members[rows, place] < torch.inf
        usable[rows, group, place] = torch.inf
        return group * of + place, there

    return _swap(weight * sums, spreads, keep, stop, partner, always_on=True)
