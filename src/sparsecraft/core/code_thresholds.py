"""Thresholds that stand in for a selection over a batch, for rows that come alone.

A selection over the batch or over features ties rows to each other. What remains of it for a single
row is "kept if the entry exceeds a threshold", where the threshold lies just below the smallest
entry that the selection kept: running over training batches, or exact over a calibration set that
is read once and never held whole.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from sparsecraft.core.code import Code
from sparsecraft.core.errors import InvalidValue


def check_momentum(name: str, momentum: float) -> float:
    """Returns the momentum of a running mean, or raises InvalidValue unless it is in [0, 1)."""
    if not (isinstance(momentum, int | float) and 0 <= momentum < 1):
        raise InvalidValue(f"{name}={momentum!r} is not allowed: give a number in [0, 1)")
    return momentum


def window(momentum: float) -> int:
    """Returns over how many values a running mean averages, 1 / (1 - momentum).

    Example:
        >>> window(0.99), window(0.0)
        (100, 1)
    """
    return round(1 / (1 - momentum))


def move_towards(running: Tensor, value: Tensor, momentum: float, *, first: bool = False) -> None:
    """Moves a running mean in place; where it is unset (NaN), or at first, it becomes the value."""
    moved = momentum * running + (1 - momentum) * value
    running.copy_(torch.where(torch.isnan(running) | first, value, moved))


def just_below(value: Tensor) -> Tensor:
    """Returns the largest number below each positive value; 0 stays.

    What comes alone must exceed the threshold, so a threshold at the smallest entry kept would
    drop that entry.
    """
    return torch.nextafter(value, torch.zeros_like(value))


def smallest_kept(u: Tensor, code: Code, *, absolute: bool = False) -> dict[str, Tensor]:
    """Returns the statistics of one batch from which a running threshold for all entries is made.

    Args:
        u: (rows, width), what was selected from.
        code: What was selected.
        absolute: Whether magnitudes count.

    Returns:
        float32 (1,) "threshold", just below the smallest entry kept, and "batches", 1; both 0 where
        nothing was kept. Summed over ranks their ratio is the mean of the ranks' thresholds.
    """
    kept = u[code.rows(), code.columns].float()
    if not kept.numel():
        return {"threshold": u.new_zeros(1).float(), "batches": u.new_zeros(1).float()}
    least = (kept.abs() if absolute else kept).min().reshape(1)
    return {"threshold": just_below(least), "batches": torch.ones_like(least)}


def smallest_kept_by_column(u: Tensor, code: Code, counts: Tensor) -> Tensor:
    """Returns float32 (width,), just below the smallest entry kept in each column.

    It is 0 where fewer than the counts were kept: every positive entry was.

    Args:
        u: (rows, width), what was selected from.
        code: What was selected.
        counts: int64 (width,), how many entries each column may keep.
    """
    kept = u[code.rows(), code.columns].float()
    least = kept.new_full((code.width,), torch.inf)
    least.scatter_reduce_(0, code.columns, kept, "amin")
    full = torch.bincount(code.columns, minlength=code.width) >= counts.to(kept.device)
    return just_below(least.where(full & torch.isfinite(least), 0.0))


def whole_threshold(batches: Iterable[Tensor], keep: int, *, absolute: bool = False) -> Tensor:
    """Returns the threshold that exactly `keep` entries of all batches exceed.

    Fewer exceed it only where fewer are positive, more only where several equal the last one kept.

    Args:
        batches: (rows, width) each; at most twice `keep` entries are held at a time.
        keep: How many entries of all batches together.
        absolute: Whether magnitudes count.

    Returns:
        (1,).

    Example:
        >>> float(whole_threshold([torch.tensor([[4.0, 1.0]]), torch.tensor([[3.0, 2.0]])], 2)) < 3
        True
    """
    held, cut = torch.empty(0), 0.0
    for scores in batches:
        ranks = scores.abs() if absolute else scores
        held = torch.cat([held.to(ranks), ranks[ranks > cut]])
        if len(held) > 2 * keep:
            held = held.topk(keep, sorted=False).values
            # What equals the cut cannot lower the last entry kept.
            cut = float(held.min())
    if len(held) < keep:
        return held.new_zeros(1)
    return just_below(held.topk(keep, sorted=False).values.min().reshape(1))


def column_thresholds(batches: Iterable[Tensor], counts: Tensor) -> Tensor:
    """Returns (width,), in each column the threshold that counts[j] entries of all batches exceed.

    Args:
        batches: (rows, width) each; entries of at most twice the counts' sum, and one batch's
            positive entries, are held at a time.
        counts: int64 (width,), at least 1.
    """
    width, total = len(counts), int(counts.sum())
    values, columns = torch.empty(0), torch.empty(0, dtype=torch.int64)
    cut = torch.zeros(width)
    for scores in batches:
        counts, cut = counts.to(scores.device), cut.to(scores)
        above = scores > cut
        values = torch.cat([values.to(scores), scores[above]])
        columns = torch.cat([columns.to(scores.device), above.nonzero()[:, 1]])
        if len(values) > 2 * total:
            values, columns = _largest_by_column(values, columns, counts)
            cut = _least_of_full(values, columns, counts)
    return just_below(_least_of_full(*_largest_by_column(values, columns, counts), counts))


def _largest_by_column(values: Tensor, columns: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the counts[j] largest values of each column j, and their columns, ascending."""
    order = values.argsort(descending=True)
    order = order[columns[order].argsort(stable=True)]
    values, columns = values[order], columns[order]
    found = torch.bincount(columns, minlength=len(counts))
    place = torch.arange(len(columns), device=columns.device) - (found.cumsum(0) - found)[columns]
    kept = place < counts[columns]
    return values[kept], columns[kept]


def _least_of_full(values: Tensor, columns: Tensor, counts: Tensor) -> Tensor:
    """Returns the smallest value of each column that has its count of them, else 0."""
    least = values.new_full((len(counts),), torch.inf)
    least.scatter_reduce_(0, columns, values, "amin")
    full = torch.bincount(columns, minlength=len(counts)) >= counts
    return least.where(full & torch.isfinite(least), 0.0)
