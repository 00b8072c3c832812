"""The shards of a store as one table of rows, which may be larger than memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue

NO_TOKEN = -1
"""Stands behind a context that is shorter than the longest of its store."""


@dataclass(frozen=True)
class Shard:
    """Some contexts of a store: their rows lie one after another, in the order of the text.

    Args:
        x: (rows, d_in), in memory or mapped from a file.
        counts: int32 (contexts,), rows of each context.
        positions: int32 (rows,), where in its context each row stands.
        gradient: (rows, d_in), or None.
        target: (rows, d_out), or None.
        tokens: int32 (contexts, longest), or None.
    """

    x: Tensor
    counts: Tensor
    positions: Tensor
    gradient: Tensor | None = None
    target: Tensor | None = None
    tokens: Tensor | None = None

    def parts(self) -> dict[str, Tensor]:
        """Returns what there is, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


class Table:
    """Rows of several shards, numbered through.

    Args:
        shards: At least one, all with the same parts and widths.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = tuple(shards)
        self._first_rows = _starts(torch.tensor([len(shard.x) for shard in shards]))
        self.context_starts = _starts(torch.cat([shard.counts for shard in shards]))
        """int64 (contexts + 1,): where the rows of each context begin."""

    def __len__(self) -> int:
        return int(self._first_rows[-1])

    def width(self, part: str) -> int:
        """Returns the entries of a row of a part, 0 if there is no such part."""
        held = getattr(self.shards[0], part)
        return 0 if held is None else held.shape[1]

    def gather(self, part: str, rows: Tensor) -> Tensor:
        """Returns the rows of a part in the order asked for, in its own type.

        Files are read in ascending order, whatever the order of the rows.

        Args:
            part: "x", "gradient", "target" or "positions"; it must be there.
            rows: int64 (n,), each below the length.
        """
        if len(self.shards) == 1 and _ascending(rows):
            return getattr(self.shards[0], part).index_select(0, rows)
        ascending, order = rows.sort()
        ends = torch.searchsorted(ascending, self._first_rows).tolist()
        first = getattr(self.shards[0], part)
        out = first.new_empty(len(rows), *first.shape[1:])
        for number, shard in enumerate(self.shards):
            mine = slice(ends[number], ends[number + 1])
            local = ascending[mine] - self._first_rows[number]
            if len(local):
                out[order[mine]] = getattr(shard, part).index_select(0, local)
        return out

    @property
    def longest(self) -> int | None:
        """Tokens of the longest context, or None without a text."""
        widths = [shard.tokens.shape[1] for shard in self.shards if shard.tokens is not None]
        return max(widths, default=None)

    @cached_property
    def tokens(self) -> Tensor | None:
        """int32 (contexts, longest) token ids, or None; shorter contexts end in -1."""
        found = [shard.tokens for shard in self.shards if shard.tokens is not None]
        if not found:
            return None
        longest = self.longest or 0
        padded = [
            torch.nn.functional.pad(part, (0, longest - part.shape[1]), value=NO_TOKEN)
            for part in found
        ]
        return padded[0] if len(padded) == 1 else torch.cat(padded)


def check_index(index: Tensor, rows: int) -> Tensor:
    """Returns row numbers as int64 (n,) on the CPU.

    Raises:
        InvalidValue: If they are no whole numbers, or not below `rows`.
    """
    if index.is_floating_point() or index.dtype == torch.bool or index.dim() != 1:
        raise InvalidValue(
            f"index must be whole numbers (n,); {index.dtype} {tuple(index.shape)} was given"
        )
    index = index.detach().cpu().long()
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < rows:
        raise InvalidValue(
            f"index has rows from {int(index.min())} to {int(index.max())}; the store has rows "
            f"0 to {rows - 1}"
        )
    return index


def _starts(counts: Tensor) -> Tensor:
    out = torch.zeros(len(counts) + 1, dtype=torch.int64)
    out[1:] = counts.long().cumsum(0)
    return out


def _ascending(rows: Tensor) -> bool:
    return bool((rows.diff() >= 0).all())
