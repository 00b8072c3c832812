"""Penalties of groups of entries: their prox multiplies each group by a factor.

A tensor is (groups, entries), or (groups,) with one entry each; and since the prox only scales each
group, it follows from the norms alone: `factors(norms, step)` serves groups that are spread over
several tensors too.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue, NonFinite
from sparsecraft.core.penalties.base import Penalty, check_count, check_step, check_strength
from sparsecraft.core.penalties.entries import L1
from sparsecraft.kernels.selection import keep_largest


class GroupPenalty(Penalty):
    """A penalty of the norms of groups; its prox multiplies each group by a factor."""

    @property
    def couples_rows(self) -> bool:
        """Whether groups, the rows of (groups, entries), vie for places; mostly they do."""
        return True

    @abstractmethod
    def of_norms(self, norms: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Returns R, a scalar.

        Args:
            norms: (groups,), float64.
            sizes: (groups,), float64; entries of each group, 1 if left out.
        """

    @abstractmethod
    def factors(self, norms: Tensor, step: float, sizes: Tensor | None = None) -> Tensor:
        """Returns what the prox multiplies each group by: (groups,), in [0, 1].

        Args:
            norms: (groups,), float64.
            step: At least 0.
            sizes: (groups,), float64; entries of each group, 1 if left out.
        """

    def value(self, x: Tensor) -> Tensor:
        """Returns R(x) for groups (groups, entries) or (groups,)."""
        return self.of_norms(*norms_and_sizes(x))

    def prox(self, x: Tensor, step: float) -> Tensor:
        """Returns the prox of groups (groups, entries) or (groups,)."""
        norms, sizes = norms_and_sizes(x)
        return scale_groups(x, self.factors(norms, step, sizes))


@dataclass(frozen=True, kw_only=True)
class GroupL2(GroupPenalty):
    """Group lasso: R(x) = strength * sum_j sqrt(size_j) ||x_j||; the prox is the block threshold.

    Args:
        strength: At least 0.

    Example:
        >>> GroupL2().prox(torch.tensor([[6.0, 0.0, 0.0, 8.0], [1.0, 0.0, 0.0, 0.0]]), step=1.0)
        tensor([[4.8000, 0.0000, 0.0000, 6.4000],
                [0.0000, 0.0000, 0.0000, 0.0000]])

    Reference:
        Yuan, Lin, 2006, Journal of the Royal Statistical Society B 68, eq. 2.
    """

    strength: float = 1.0

    @property
    def couples_rows(self) -> bool:
        """Never: R is a sum over the groups."""
        return False

    def __post_init__(self) -> None:
        check_strength(self.strength)

    def of_norms(self, norms: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Returns strength * sum_j sqrt(size_j) ||x_j||."""
        return self.strength * (_roots(norms, sizes) * norms).sum()

    def factors(self, norms: Tensor, step: float, sizes: Tensor | None = None) -> Tensor:
        """Returns max(0, 1 - step * strength * sqrt(size_j) / ||x_j||)."""
        return block_threshold(norms, check_step(step) * self.strength * _roots(norms, sizes))

    def gradient_factors(self, norms: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Returns strength * sqrt(size_j) / ||x_j||, by which the gradient scales; 0 at zero."""
        return (self.strength * _roots(norms, sizes) / norms).where(norms > 0, 0.0)


@dataclass(frozen=True, kw_only=True)
class GroupTopK(GroupPenalty):
    """At most k groups: R is 0 for these, else infinite. The prox keeps the k largest norms.

    With it, a prox gradient step is iterative hard thresholding.

    Args:
        k: How many groups may be other than zero.

    Example:
        >>> GroupTopK(k=1).prox(torch.tensor([[3.0, 4.0], [5.0, 1.0]]), step=1.0)
        tensor([[0., 0.],
                [5., 1.]])

    Reference:
        Blumensath, Davies, 2009, arXiv 0805.0510.
    """

    k: int

    def __post_init__(self) -> None:
        check_count(self.k)

    def of_norms(self, norms: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Returns 0 if at most k norms are positive, else infinity."""
        return norms.new_tensor(0.0 if int((norms > 0).sum()) <= self.k else math.inf)

    def factors(self, norms: Tensor, step: float, sizes: Tensor | None = None) -> Tensor:
        """Returns 1 for the k largest norms, of equal ones the first; else 0."""
        check_step(step)
        check_count(self.k, norms.numel())
        return keep_largest([norms], self.k)[0].to(norms.dtype)


@dataclass(frozen=True, kw_only=True)
class SparseGroupL2(Penalty):
    """Sparse group lasso: R(x) = strength * (share * sum |x| + (1 - share) * group lasso).

    Args:
        strength: At least 0.
        share: How much of it goes to the entries instead of the groups, in [0, 1].

    Reference:
        Simon et al., 2013, Journal of Computational and Graphical Statistics 22, eq. 3.
    """

    strength: float = 1.0
    share: float = 0.5

    def __post_init__(self) -> None:
        check_strength(self.strength)
        if not 0 <= self.share <= 1:
            raise InvalidValue(f"share={self.share!r} is not allowed: it must be in [0, 1]")

    @property
    def _parts(self) -> tuple[L1, GroupL2]:
        return (
            L1(strength=self.strength * self.share),
            GroupL2(strength=self.strength * (1 - self.share)),
        )

    def value(self, x: Tensor) -> Tensor:
        """Returns R(x) for groups (groups, entries) or (groups,)."""
        entries, groups = self._parts
        return entries.value(x) + groups.value(x)

    def prox(self, x: Tensor, step: float) -> Tensor:
        """Returns the block threshold of the soft threshold, which is the prox of the sum."""
        entries, groups = self._parts
        return groups.prox(entries.prox(x, step), step)


def _roots(norms: Tensor, sizes: Tensor | None) -> Tensor:
    return torch.ones_like(norms) if sizes is None else sizes.sqrt()


def block_threshold(norms: Tensor, thresholds: Tensor) -> Tensor:
    """Returns max(0, 1 - threshold / norm) for each group, 0 where the norm is 0."""
    return (1 - thresholds / norms).where(norms > thresholds, 0.0)


def norms_and_sizes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the norms of groups (groups, entries) or (groups,), summed in float64, and sizes.

    Raises:
        InvalidValue: If x is not a floating tensor of one axis or more.
        NonFinite: If it holds NaN or infinity.
    """
    if not x.is_floating_point() or x.dim() == 0:
        raise InvalidValue(
            f"groups of shape {tuple(x.shape)} and type {x.dtype}: give a floating tensor "
            "(groups, entries), or (groups,) for groups of one entry."
        )
    entries = x.reshape(x.shape[0], -1) if x.numel() else x.new_zeros(x.shape[0], 0)
    norms = torch.linalg.vector_norm(entries, dim=1, dtype=torch.float64)
    return check_norms(norms), torch.full_like(norms, entries.shape[1])


def scale_groups(x: Tensor, factors: Tensor) -> Tensor:
    """Returns each group of x (groups, ...) times its factor, zero where that is zero."""
    return x * factors.to(x.dtype).view(-1, *[1] * (x.dim() - 1))


def check_norms(norms: Tensor) -> Tensor:
    """Returns the norms, or raises NonFinite if one is NaN or infinite."""
    # Of norms, which are not negative, the largest tells: it is NaN if any is.
    if norms.numel() and not math.isfinite(float(norms.max())):
        bad = (~torch.isfinite(norms)).nonzero().reshape(-1)
        raise NonFinite(
            f"{len(bad)} of {norms.numel()} groups hold NaN or infinite entries, first group "
            f"{int(bad[0])}. Find where they come from: no prox can rank them."
        )
    return norms
