"""Swaps in plain PyTorch, all rows at once, on any device: the reference for the compiled loops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparsecraft.kernels.mask_swaps import Stop, Swaps

# Entries that are worked on at once; their queues take some 100 bytes each.
BAND = 1 << 22

Partner = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(side, grown column) of every row -> (column to give up, whether there is one)."""


@dataclass
class Queues:
    """Two queues of columns for every row: side 0 for losses up to zero, side 1 for those above.

    Args:
        order: int64 (2, rows, columns), the columns as they are taken, candidates first.
        count: int64 (2, rows), how many are candidates.
    """

    order: Tensor
    count: Tensor
    taken: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.taken = torch.zeros_like(self.count)

    @classmethod
    def of(cls, worth: Tensor, candidates: Tensor) -> Queues:
        """Returns the queues that begin with the highest worth, of equal ones the first column.

        Args:
            worth: (2, rows, columns).
            candidates: bool of the same shape.
        """
        ranked = worth.masked_fill(~candidates, -torch.inf)
        order = ranked.sort(dim=-1, descending=True, stable=True).indices
        return cls(order, candidates.sum(-1))

    def take(self, side: Tensor) -> tuple[Tensor, Tensor]:
        """Returns each row's next column, and whether there was one.

        Args:
            side: int64 (rows,), from which queue.
        """
        rows = torch.arange(side.numel(), device=side.device)
        place = self.taken[side, rows]
        there = place < self.count[side, rows]
        self.taken[side, rows] += 1
        return self.order[side, rows, place.clamp(max=self.order.shape[-1] - 1)], there


def swap_in_rows(
    weight: Tensor, sums: Tensor, spreads: Tensor, norms: Tensor, keep: Tensor, stop: Stop
) -> Swaps:
    """Returns the masks after swaps of any two entries of a row; see `mask_swaps`."""

    def band(weight: Tensor, keep: Tensor) -> Swaps:
        shares = weight * sums
        worth = -(weight.abs() * norms)
        given_up = Queues.of(worth.expand(2, -1, -1), torch.stack([shares > 0, shares < 0]) & keep)
        return _swapped(shares, spreads, keep, stop, lambda side, _: given_up.take(side))

    return _joined([band(*parts) for parts in _bands(weight, keep)])


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

    def band(weight: Tensor, scores: Tensor, keep: Tensor) -> Swaps:
        rows = torch.arange(weight.shape[0], device=weight.device)
        usable = scores.masked_fill(~keep, torch.inf).view(weight.shape[0], -1, of)

        def cheapest(side: Tensor, grown: Tensor) -> tuple[Tensor, Tensor]:
            group = grown // of
            members = usable[rows, group]
            place = members.argmin(1)
            usable[rows, group, place] = torch.inf
            return group * of + place, members[rows, place] < torch.inf

        return _swapped(weight * sums, spreads, keep, stop, cheapest, skips=True)

    return _joined([band(*parts) for parts in _bands(weight, scores, keep)])


def _swapped(
    shares: Tensor,
    spreads: Tensor,
    keep: Tensor,
    stop: Stop,
    partner: Partner,
    *,
    skips: bool = False,
) -> Swaps:
    """Returns the masks after the cycles.

    Args:
        shares: (rows, columns), what each entry contributes.
        spreads: (columns,).
        keep: bool (rows, columns).
        stop: When a row is done.
        partner: Says what is given up.
        skips: Whether a row without a partner goes on to the next cycle.
    """
    rows = torch.arange(shares.shape[0], device=shares.device)
    before = shares.masked_fill(keep, 0).sum(1, dtype=torch.float64)
    steady = shares / spreads
    grow = Queues.of(torch.stack([-steady, steady]), torch.stack([steady < 0, steady > 0]) & ~keep)
    kept, loss = keep.clone(), before.clone()
    swaps = torch.zeros_like(rows)
    active = torch.ones_like(rows, dtype=torch.bool)
    for _ in range(stop.cycles):
        active = active & (loss.abs() > stop.threshold)
        if not active.any():
            break
        side = (loss > 0).long()
        grown, found = grow.take(side)
        given_up, there = partner(side, grown)
        after = loss + shares[rows, given_up].double() - shares[rows, grown].double()
        active = active & found
        if not skips:
            active = active & there
        if stop.same_sign:
            active = active & ((after.sign() == before.sign()) | ~there)
        swap = active & there
        kept[rows[swap], given_up[swap]] = False
        kept[rows[swap], grown[swap]] = True
        loss = torch.where(swap, after, loss)
        swaps += swap
    return Swaps(kept, before, loss, swaps)


def _bands(*matrices: Tensor) -> list[tuple[Tensor, ...]]:
    height = max(1, BAND // max(1, matrices[0].shape[1]))
    return list(zip(*(matrix.split(height) for matrix in matrices), strict=True))


def _joined(bands: list[Swaps]) -> Swaps:
    return Swaps(*(torch.cat([getattr(b, name) for b in bands]) for name in vars(bands[0])))
