"""A batch of rows of a store."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ActivationBatch:
    """Rows of a store, in float32.

    Args:
        x: (rows, d_in), what the model had at the hook.
        gradient: (rows, d_out), of the model's loss with respect to what is reconstructed (the
            target, or x), if the store has it.
        target: (rows, d_out), what a transcoder shall reconstruct, if the store has it.
        index: int64 (rows,), the numbers of the rows in the store.
    """

    x: Tensor
    gradient: Tensor | None
    target: Tensor | None
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def split(self, rows: int) -> list[ActivationBatch]:
        """Returns the batch in pieces of at most so many rows, which share its memory."""
        count = -(-len(self) // rows)
        parts = [
            [None] * count if tensor is None else tensor.split(rows)
            for tensor in (self.x, self.gradient, self.target, self.index)
        ]
        return [ActivationBatch(*part) for part in zip(*parts, strict=True)]

    def to(self, device: torch.device | str) -> ActivationBatch:
        """Returns the batch with its tensors on a device."""
        move = lambda tensor: None if tensor is None else tensor.to(device)  # noqa: E731
        return ActivationBatch(
            self.x.to(device), move(self.gradient), move(self.target), self.index.to(device)
        )
