"""Which inputs a gated product reads, row by row.

A row keeps the inputs whose score |x_j| * norms_j is among the k largest, or above a threshold.
Scores are formed in float32. A NaN score counts as largest, so that a broken activation shows in
the output instead of being gated away.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecraft.kernels.selection import keep_largest_per_row


@dataclass(frozen=True, eq=False)
class Gate:
    """Keeps, in each row, the inputs of largest |x_j| * norms_j.

    Args:
        threshold: What a score must exceed to be kept, at least 0.
        keep: Or: how many inputs each row keeps; of equal scores the first stays.
        norms: (inputs,) factors of the score, not negative, or None for ones.

    Raises:
        ValueError: Unless exactly one of threshold and keep is given and in range.

    Example:
        >>> Gate(threshold=1.5).mask(torch.tensor([[1.0, -2.0]]))
        tensor([[False,  True]])
    """

    threshold: float | None = None
    keep: int | None = None
    norms: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.threshold is None) == (self.keep is None):
            raise ValueError(
                f"a gate needs either threshold or keep, not threshold={self.threshold} and "
                f"keep={self.keep}"
            )
        if self.keep is not None and self.keep < 1:
            raise ValueError(f"keep={self.keep} is not allowed: a row keeps at least 1 input")
        if self.threshold is not None and not self.threshold >= 0:
            raise ValueError(f"threshold={self.threshold} is not allowed: give at least 0")

    def check(self, inputs: int) -> None:
        """Raises ValueError if the gate does not fit rows of so many inputs."""
        if self.keep is not None and self.keep > inputs:
            raise ValueError(f"keep={self.keep} exceeds the {inputs} inputs of a row")
        if self.norms is not None and tuple(self.norms.shape) != (inputs,):
            raise ValueError(
                f"norms of shape {tuple(self.norms.shape)} do not fit {inputs} inputs: "
                f"give ({inputs},)"
            )

    def mask(self, x: Tensor) -> Tensor:
        """Returns a bool tensor like x, (rows, inputs), True where kept."""
        return gate_mask(x, self.threshold, self.keep, self.norms)


def gate_mask(x: Tensor, threshold: float | None, keep: int | None, norms: Tensor | None) -> Tensor:
    """Returns what `Gate.mask` does, from the gate's parts."""
    scores = x.detach().float().abs()
    if norms is not None:
        scores = scores * norms.float()
    if threshold is not None:
        return ~(scores <= threshold)
    if keep is None:
        return torch.ones_like(x, dtype=torch.bool)
    return keep_largest_per_row(scores.nan_to_num(nan=torch.inf), keep)


@torch.library.custom_op("sparsecraft::gate_mask", mutates_args=())
def gate_mask_operator(
    x: Tensor, threshold: float | None, keep: int | None, norms: Tensor | None
) -> Tensor:
    """`gate_mask` as an operator: its selection reads values, which a compiler does not have."""
    return gate_mask(x, threshold, keep, norms)


@gate_mask_operator.register_fake
def _(x: Tensor, *gate: object) -> Tensor:
    return torch.empty_like(x, dtype=torch.bool)
