"""A sparse code: which entries of each row are other than zero, and their values."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Code:
    """Rows of `width` entries of which only the selected ones are held, row after row.

    Args:
        starts: int64 (rows + 1,); entries starts[i] to starts[i + 1] belong to row i.
        columns: int64 (entries,); within a row ascending.
        values: (entries,), floating.
        width: Entries of a full row.

    Example:
        >>> code = Code.of(torch.tensor([[0.0, 2.0, 0.0], [3.0, 0.0, -1.0]]))
        >>> code.columns.tolist(), code.counts().tolist()
        ([1, 0, 2], [1, 2])
    """

    starts: Tensor
    columns: Tensor
    values: Tensor
    width: int

    @classmethod
    def of(cls, dense: Tensor, mask: Tensor | None = None) -> Code:
        """Returns the code of dense rows.

        Args:
            dense: (rows, width).
            mask: bool (rows, width), what is selected; by default what is not zero.
        """
        mask = dense != 0 if mask is None else mask
        starts = torch.zeros(len(dense) + 1, dtype=torch.int64, device=dense.device)
        starts[1:] = mask.sum(1).cumsum(0)
        return cls(starts, mask.nonzero()[:, 1], dense[mask], dense.shape[1])

    def __len__(self) -> int:
        return self.starts.numel() - 1

    def counts(self) -> Tensor:
        """Returns int64 (rows,): the selected entries of each row."""
        return self.starts.diff()

    def rows(self) -> Tensor:
        """Returns int64 (entries,): the row of each entry."""
        index = torch.arange(len(self), device=self.starts.device)
        return index.repeat_interleave(self.counts())

    def dense(self) -> Tensor:
        """Returns (rows, width), zero where nothing is selected; differentiable in the values."""
        out = self.values.new_zeros(len(self), self.width)
        return out.index_put((self.rows(), self.columns), self.values)

    def with_values(self, values: Tensor) -> Code:
        """Returns the same selection with other values (entries,)."""
        return replace(self, values=values)

    def to(self, device: torch.device | str) -> Code:
        """Returns the code with its tensors on a device."""
        starts, columns = self.starts.to(device), self.columns.to(device)
        return Code(starts, columns, self.values.to(device), self.width)

    def fired(self) -> Tensor:
        """Returns int64 (width,): the rows in which each entry is other than zero."""
        return torch.bincount(self.columns[self.values != 0], minlength=self.width)
