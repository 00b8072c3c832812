"""The reference of the sparse products, in PyTorch: some entries at a time, never all rows of them.

All rows of a weight that a batch selects would take rows * k * d numbers, many times the batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Numbers that gathered rows of a weight may take at a time.
GATHERED = 1 << 22


def weighted_sums(starts: Tensor, columns: Tensor, values: Tensor, weight: Tensor) -> Tensor:
    """Returns (rows, d); see `primitives.weighted_sums`."""
    dtype = torch.promote_types(values.dtype, weight.dtype)
    rows = _rows(starts, columns)
    out = torch.zeros(len(starts) - 1, weight.shape[1], dtype=dtype, device=weight.device)
    for part in _parts(len(columns), weight.shape[1]):
        out.index_add_(0, rows[part], (values[part, None] * weight[columns[part]]).to(dtype))
    return out


def sampled_products(starts: Tensor, columns: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Returns (entries,); see `primitives.sampled_products`."""
    dtype = torch.promote_types(x.dtype, weight.dtype)
    rows = _rows(starts, columns)
    out = torch.empty(len(columns), dtype=dtype, device=weight.device)
    for part in _parts(len(columns), weight.shape[1]):
        out[part] = (x[rows[part]] * weight[columns[part]]).sum(1)
    return out


def by_column(starts: Tensor, columns: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns starts, rows and entries; see `primitives.by_column`."""
    entries = torch.argsort(columns, stable=True)
    firsts = torch.zeros(width + 1, dtype=torch.int64, device=columns.device)
    firsts[1:] = torch.bincount(columns, minlength=width).cumsum(0)
    return firsts, _rows(starts, columns)[entries], entries


def _rows(starts: Tensor, columns: Tensor) -> Tensor:
    """Returns int64 (entries,), the row of each entry."""
    index = torch.arange(len(starts) - 1, device=columns.device)
    return index.repeat_interleave(starts.diff(), output_size=len(columns))


def _parts(entries: int, width: int) -> Iterator[slice]:
    step = max(1, GATHERED // max(1, width))
    return (slice(first, first + step) for first in range(0, entries, step))
