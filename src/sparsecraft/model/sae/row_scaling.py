"""What is taken from each row before it is encoded, and given back to its reconstruction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

RowNorm = Literal["none", "unit", "layer"]
ROW_NORMS: tuple[RowNorm, ...] = get_args(RowNorm)
LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True)
class RowScaling:
    """A mean and a size for each row: inner = (x - mean) / size.

    Args:
        mean: (rows, 1), or None for 0.
        size: (rows, 1), or None for 1.
        restored: (rows, 1), what a reconstruction is multiplied by; size without the epsilon.
    """

    mean: Tensor | None
    size: Tensor | None
    restored: Tensor | None

    @classmethod
    def of(cls, rows: Tensor, norm: RowNorm) -> RowScaling:
        """Returns the scaling that `norm` gives to rows (rows, d_in)."""
        if norm == "none":
            return cls(None, None, None)
        if norm == "unit":
            size = rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
            return cls(None, size, size)
        deviation = rows.std(1, keepdim=True)
        return cls(rows.mean(1, keepdim=True), deviation + LAYER_NORM_EPS, deviation)

    def apply(self, rows: Tensor) -> Tensor:
        """Returns rows (rows, any width) as the encoder reads them, or as a target is compared."""
        rows = rows if self.mean is None else rows - self.mean
        return rows if self.size is None else rows / self.size

    def undo(self, out: Tensor) -> Tensor:
        """Returns a reconstruction (rows, d_out) in the units of the rows."""
        out = out if self.restored is None else out * self.restored
        return out if self.mean is None else out + self.mean

    def gradient(self, gradient: Tensor) -> Tensor:
        """Returns the gradient with respect to the inner rows, mean and size held constant."""
        return gradient if self.size is None else gradient * self.size
