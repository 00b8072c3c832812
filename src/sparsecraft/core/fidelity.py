"""How much of the data a reconstruction keeps: sums that run over batches, in float64.

The fraction of variance unexplained is sum ||x - x_hat||^2 / sum ||x - mean||^2, with one mean over
all rows and both sums taken before the division; predicting the mean gives exactly 1. Ratios of
single rows, or variances about zero, give other and flattering numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from sparsecraft.core.errors import InvalidValue


@dataclass
class ReconstructionSums:
    """Running sums over rows and their reconstructions.

    Example:
        >>> import torch
        >>> sums = ReconstructionSums()
        >>> x = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
        >>> sums.add(x, x.mean(0).expand(2, 2))
        >>> sums.fvu
        1.0
    """

    rows: int = 0
    _sum: Tensor | None = None
    _squares: float = 0.0
    _errors: float = 0.0
    _products: float = 0.0
    _estimates: float = 0.0
    _cosines: float = 0.0
    _relative: float = 0.0

    def add(self, x: Tensor, reconstruction: Tensor) -> None:
        """Takes rows (rows, width) and their reconstructions into account.

        Raises:
            InvalidValue: If the two differ in shape.
        """
        if x.shape != reconstruction.shape:
            raise InvalidValue(
                f"rows {tuple(x.shape)} and reconstructions {tuple(reconstruction.shape)} must be "
                "of one shape"
            )
        x, estimate = x.detach().double(), reconstruction.detach().double()
        squares, errors = x.square().sum(1), (x - estimate).square().sum(1)
        products, estimates = (x * estimate).sum(1), estimate.square().sum(1)
        self._sum = x.sum(0) if self._sum is None else self._sum + x.sum(0)
        self.rows += len(x)
        self._squares += float(squares.sum())
        self._errors += float(errors.sum())
        self._products += float(products.sum())
        self._estimates += float(estimates.sum())
        lengths = (squares * estimates).sqrt()
        self._cosines += float((products / lengths).where(lengths > 0, 0.0).sum())
        self._relative += float((errors / squares).where(squares > 0, 0.0).sum())

    @property
    def variance(self) -> float:
        """Sum of squared distances from the mean of all rows."""
        if self._sum is None:
            return 0.0
        return self._squares - float(self._sum.square().sum()) / self.rows

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained; NaN where there is no variance."""
        variance = self.variance
        # Of equal rows what is left of the difference is rounding.
        return self._errors / variance if variance > 1e-12 * self._squares else math.nan

    @property
    def explained_variance(self) -> float:
        """1 - fvu."""
        return 1 - self.fvu

    @property
    def squared_error(self) -> float:
        """Mean over rows of ||x - x_hat||^2."""
        return self._errors / self.rows if self.rows else math.nan

    @property
    def relative_error(self) -> float:
        """Mean over rows of ||x - x_hat||^2 / ||x||^2, the nMSE of some papers."""
        return self._relative / self.rows if self.rows else math.nan

    @property
    def cosine(self) -> float:
        """Mean over rows of the cosine of a row and its reconstruction."""
        return self._cosines / self.rows if self.rows else math.nan

    @property
    def shrinkage(self) -> float:
        """E ||x_hat||^2 / E <x, x_hat>, below 1 where reconstructions are too short.

        Reference:
            Rajamanoharan et al., 2024, arXiv 2404.16014, relative reconstruction bias.
        """
        return self._estimates / self._products if self._products else math.nan
