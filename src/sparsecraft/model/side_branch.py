"""A linear layer whose sparse weight has a small dense branch beside it."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.side_branch import check_width


class SideBranchLinear(nn.Module):
    """Computes x W^T + (x P^T) S^T + b, where P sums consecutive inputs or was trained.

    Args:
        linear: Gives the sparse weight and the bias, which keep their names.
        side: S (outputs, sums).
        projection: P (sums, inputs), or None for plain sums of inputs / sums consecutive inputs.

    Example:
        >>> import torch
        >>> linear = nn.Linear(4, 1, bias=False)
        >>> _ = nn.init.zeros_(linear.weight)
        >>> layer = SideBranchLinear(linear, side=torch.tensor([[1.0, 2.0]]))
        >>> layer(torch.tensor([[1.0, 1.0, 1.0, 0.0]])), layer.extra
        (tensor([[4.]], grad_fn=<AddBackward0>), 2)
    """

    def __init__(self, linear: nn.Linear, side: Tensor, projection: Tensor | None = None) -> None:
        super().__init__()
        check_width(linear.in_features, linear.in_features // max(1, side.shape[1]))
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.side = nn.Parameter(side.detach().to(linear.weight))
        self.projection = (
            None if projection is None else nn.Parameter(projection.detach().to(linear.weight))
        )
        self.train(linear.training)

    @property
    def extra(self) -> int:
        """Number of weights that the branch adds."""
        return self.side.numel() + (0 if self.projection is None else self.projection.numel())

    def settings(self) -> dict[str, Any]:
        """Returns what `from_settings` needs to make it again, without its values."""
        return {"sums": self.side.shape[1], "trained_projection": self.projection is not None}

    @classmethod
    def from_settings(
        cls, linear: nn.Module, *, sums: int, trained_projection: bool
    ) -> SideBranchLinear:
        """Returns the layer around a plain one, its side branch zero.

        Raises:
            InvalidValue: If the module is not linear or the number of sums does not fit.
        """
        if not isinstance(linear, nn.Linear):
            raise InvalidValue(f"a side branch goes beside a Linear, not a {type(linear).__name__}")
        side = linear.weight.new_zeros(linear.out_features, sums)
        wide = linear.weight.new_zeros(sums, linear.in_features) if trained_projection else None
        return cls(linear, side, wide)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (..., outputs) of an input (..., inputs)."""
        return F.linear(x, self.weight, self.bias) + F.linear(self._sums(x), self.side)

    def extra_repr(self) -> str:
        """Returns the sizes."""
        return f"{self.in_features}, {self.out_features}, sums={self.side.shape[1]}"

    def _sums(self, x: Tensor) -> Tensor:
        if self.projection is not None:
            return F.linear(x, self.projection)
        return x.unflatten(-1, (self.side.shape[1], -1)).sum(-1)
