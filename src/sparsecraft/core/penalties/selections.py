"""Penalties that allow only so many entries: their prox selects, and changes no value.

R is 0 where the budget is kept, else infinite, so the step of the prox does not matter. The budget
counts in each row (a token), in the whole batch, or in each column (a feature).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from sparsecraft.core.code import Code
from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.penalties.base import Penalty, check_count, check_step
from sparsecraft.kernels.codes import select_columns, select_rows, select_whole

Scope = Literal["token", "batch", "feature"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


@dataclass(frozen=True, kw_only=True)
class Selection(Penalty):
    """At most a number of entries in each row, in each column, or k for each row on average.

    Args:
        k: Entries of a row (`token`), k times the rows in all (`batch`), or of a column
            (`feature`).
        scope: Where the budget counts.
    """

    k: int
    scope: Scope = "token"
    signed: ClassVar[bool] = True
    """Whether negative entries are allowed."""

    def __post_init__(self) -> None:
        check_count(self.k)
        if self.scope not in SCOPES:
            raise UnknownName("scope", str(self.scope), SCOPES)

    @property
    def couples_rows(self) -> bool:
        """Whether the budget is one of several rows."""
        return self.scope != "token"

    def value(self, x: Tensor) -> Tensor:
        """Returns 0 for (rows, width) within the budget, else infinity."""
        used = x != 0
        allowed = self.signed or not bool((x < 0).any())
        within = {
            "token": lambda: used.sum(-1).max() <= self.k,
            "batch": lambda: used.sum() <= self.k * len(x),
            "feature": lambda: used.sum(0).max() <= self.k,
        }[self.scope]()
        return x.new_tensor(0.0 if allowed and bool(within) else math.inf)

    def prox(self, x: Tensor, step: float = 1.0) -> Tensor:
        """Returns (rows, width) with the selected entries of x, zero elsewhere."""
        check_step(step)
        return self.select(x).dense()

    def select(self, x: Tensor) -> Code:
        """Returns the selected entries of x; a zero is never one.

        Args:
            x: (rows, width), floating and finite.

        Raises:
            InvalidValue: If k exceeds what there is to select from.
        """
        rows, width = x.shape
        if self.k > (rows if self.scope == "feature" else width):
            entries = f"{rows} rows" if self.scope == "feature" else f"{width} entries of a row"
            raise InvalidValue(
                f"k={self.k} exceeds the {entries}: give a whole number from 1 to "
                f"{rows if self.scope == 'feature' else width}"
            )
        if self.scope == "token":
            starts, columns = select_rows(x, self.k, absolute=self.signed)
        elif self.scope == "batch":
            starts, columns = select_whole(x, self.k * rows, absolute=self.signed)
        else:
            counts = torch.full((width,), self.k, dtype=torch.int64)
            starts, columns = select_columns(x, counts, absolute=self.signed)
        code = Code(starts, columns, x.new_empty(0), width)
        return code.with_values(x[code.rows(), columns])

    @abstractmethod
    def threshold_mask(self, x: Tensor, threshold: Tensor) -> Tensor:
        """Returns bool: what exceeds a threshold, the rule for rows that come alone."""


@dataclass(frozen=True, kw_only=True)
class TopK(Selection):
    """At most k entries, none negative: the prox keeps the k largest positive ones.

    Example:
        >>> TopK(k=1).prox(torch.tensor([[3.0, -5.0, 1.0]]))
        tensor([[3., 0., 0.]])

    Reference:
        Gao et al., 2024, arXiv 2406.04093; Zhu et al., 2025, arXiv 2510.00404, table 1.
    """

    signed: ClassVar[bool] = False

    def threshold_mask(self, x: Tensor, threshold: Tensor) -> Tensor:
        """Returns x > threshold."""
        return x > threshold


@dataclass(frozen=True, kw_only=True)
class AbsTopK(Selection):
    """At most k entries of either sign: the prox keeps the k largest magnitudes, with their signs.

    Example:
        >>> AbsTopK(k=1).prox(torch.tensor([[3.0, -5.0, 1.0]]))
        tensor([[ 0., -5.,  0.]])

    Reference:
        Zhu et al., 2025, arXiv 2510.00404, table 1.
    """

    def threshold_mask(self, x: Tensor, threshold: Tensor) -> Tensor:
        """Returns |x| > threshold."""
        return x.abs() > threshold
