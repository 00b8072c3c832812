"""The group sparse envelope: a convex penalty that asks for at most k groups (WGSEF).

Refael, Arbel and Huleihel (2022) take half the weighted squared norm, restricted to tensors with at
most k groups that are not zero, and use its convex envelope as a regulariser: k is what the user
says, and no strength has to be searched until the count is right. With groups of one entry it is
half the squared k-support norm, and for k = 1 half the squared group lasso. Value, gradient and
prox all follow from one root, that of a sum of clipped ramps (`sparsecraft.kernels.envelope`).

The paper's official code was not found; the formulas below are derived from the definition. The
root of the prox (eta times sqrt(d_j) ||t_j|| minus lambda d_j) and that of the value (no offset)
are one function, but different numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.penalties import (
    GroupPenalty,
    Penalty,
    check_count,
    check_norms,
    check_step,
    check_strength,
    norms_and_sizes,
    scale_groups,
)
from sparsecraft.kernels.envelope import clipped_ramps, ramp_root

Weighting = Literal["one", "size", "sqrt_size", "inverse_size"]
WEIGHTINGS: tuple[Weighting, ...] = get_args(Weighting)


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupEnvelope(GroupPenalty):
    """R(x) = strength * GS_k(x), the convex envelope of half the weighted squared norm on k groups.

    GS_k(x) = 1/2 min over u in [0, 1]^m with sum u <= k of sum_j d_j ||x_j||^2 / u_j. Its prox
    leaves between k and m groups; the larger step * strength, the nearer to k. The groups that
    stay are shrunk by 1 / (1 + step * strength * d_j), as weight decay would.

    Args:
        k: How many groups are free of charge beyond weight decay, from 1 to all.
        strength: At least 0; lambda in the paper.
        weights: d_j: "one", "size" (entries of the group), "sqrt_size", "inverse_size", or
            positive numbers (groups,).

    Example:
        >>> x = torch.tensor([[3.0, 4.0], [0.0, 0.1], [2.0, 0.0]])
        >>> GroupEnvelope(k=2).prox(x, step=1.0)
        tensor([[1.5000, 2.0000],
                [0.0000, 0.0000],
                [1.0000, 0.0000]])

    Reference:
        Refael, Arbel, Huleihel, 2022, arXiv 2212.12921; Argyriou et al., 2012, arXiv 1204.5043.
    """

    k: int
    strength: float = 1.0
    weights: Weighting | Tensor = "one"

    def __post_init__(self) -> None:
        check_count(self.k)
        check_strength(self.strength)
        if isinstance(self.weights, Tensor):
            if not bool(((self.weights > 0) & torch.isfinite(self.weights)).all()):
                raise InvalidValue(
                    "weights of groups must be positive and finite; the least is "
                    f"{float(self.weights.min()):g}. A group of weight 0 would not be penalised: "
                    "leave it out of the groups instead."
                )
        elif self.weights not in WEIGHTINGS:
            raise UnknownName("weighting of groups", str(self.weights), WEIGHTINGS)

    def of_norms(self, norms: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Returns strength / 2 * sum_j d_j ||x_j||^2 / u_j over the groups that are not zero."""
        u = self.dual_weights(norms, sizes)
        energy = self._d(norms, sizes) * norms.square() / u
        return self.strength / 2 * energy.where(u > 0, 0.0).sum()

    def dual_weights(self, norms: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Returns the u that attains GS_k: (groups,), in [0, 1], 0 for groups that are zero.

        With at most k groups that are not zero it is 1 for all of these; else
        u_j = min(1, eta * sqrt(d_j) ||x_j||), eta such that they sum to k.
        """
        return self._ramps(norms, 0.0, sizes)

    def conjugate(self, y: Tensor) -> Tensor:
        """Returns R*(y): half the sum of the k largest ||y_j||^2 / d_j, over the strength."""
        norms, sizes = norms_and_sizes(y)
        check_count(self.k, norms.numel())
        largest = (norms.square() / self._d(norms, sizes)).topk(self.k, sorted=False).values
        half = largest.sum() / 2
        if self.strength == 0:
            return half.new_tensor(math.inf if float(half) > 0 else 0.0)
        return half / self.strength

    def gradient_factors(self, norms: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Returns strength * d_j / u_j, by which the gradient multiplies each group; 0 at zero.

        At a zero group the zero vector is one of the subgradients.
        """
        u = self.dual_weights(norms, sizes)
        return self.strength * (self._d(norms, sizes) / u).where(u > 0, 0.0)

    def grad(self, x: Tensor) -> Tensor:
        """Returns the (sub)gradient of groups (groups, entries) or (groups,), in the shape of x."""
        return scale_groups(x, self.gradient_factors(*norms_and_sizes(x)))

    def prox_weights(self, norms: Tensor, step: float, sizes: Tensor | None = None) -> Tensor:
        """Returns the u of the prox: clip(eta * sqrt(d_j) ||t_j|| - lambda * d_j, 0, 1).

        They sum to k, or are 1 on all groups that are not zero if there are no more than k.
        """
        return self._ramps(norms, check_step(step) * self.strength, sizes)

    def factors(self, norms: Tensor, step: float, sizes: Tensor | None = None) -> Tensor:
        """Returns u_j / (lambda * d_j + u_j), by which the prox multiplies each group."""
        u = self.prox_weights(norms, step, sizes)
        return _shrinkage(u, step * self.strength * self._d(norms, sizes))

    def _ramps(self, norms: Tensor, strength: float, sizes: Tensor | None) -> Tensor:
        check_count(self.k, norms.numel())
        check_norms(norms)
        d = self._d(norms, sizes)
        slopes, offsets = (d.sqrt() * norms)[None], (strength * d)[None]
        keep = torch.tensor([self.k], device=norms.device)
        return clipped_ramps(slopes, offsets, ramp_root(slopes, offsets, keep))[0]

    def _d(self, norms: Tensor, sizes: Tensor | None) -> Tensor:
        """Returns the weights, (groups,), or (1,) where they are all equal."""
        if isinstance(self.weights, Tensor):
            if self.weights.shape != norms.shape:
                raise InvalidValue(
                    f"{self.weights.numel()} weights for {norms.numel()} groups: give one for each"
                )
            return self.weights.to(norms)
        if self.weights == "one":
            return norms.new_ones(1)
        if sizes is None:
            raise InvalidValue(
                f"weights={self.weights!r} needs the sizes of the groups beside their norms"
            )
        return weights_of(self.weights, sizes)


def batched_factors(
    penalties: Sequence[GroupEnvelope],
    norms: Sequence[Tensor],
    step: float,
    sizes: Sequence[Tensor],
) -> list[Tensor]:
    """Returns the prox factors of several families of groups, with one search for all roots.

    Args:
        penalties: One for each family, with its own k, strength and weights.
        norms: (groups,), float64, of each family.
        step: At least 0, common to all.
        sizes: (groups,), float64, of each family.
    """
    check_step(step)
    padded, decays = [], []
    for penalty, each, size in zip(penalties, norms, sizes, strict=True):
        check_count(penalty.k, each.numel())
        d = penalty._d(check_norms(each), size).expand_as(each)
        padded.append(d.sqrt() * each)
        decays.append(step * penalty.strength * d)
    # Groups of norm zero take no part, so that padding changes nothing.
    slopes, offsets = pad_sequence(padded, batch_first=True), pad_sequence(decays, batch_first=True)
    keep = torch.tensor([penalty.k for penalty in penalties], device=slopes.device)
    u = clipped_ramps(slopes, offsets, ramp_root(slopes, offsets, keep))
    factors = _shrinkage(u, offsets)
    return [row[: each.numel()] for row, each in zip(factors, norms, strict=True)]


@dataclass(frozen=True, kw_only=True)
class KSupport(Penalty):
    """R(x) = strength / 2 * squared k-support norm of all entries of x.

    It is the group envelope of groups of one entry: between half the squared L1 norm (k = 1) and
    half the squared L2 norm (k = all).

    Args:
        k: From 1 to the number of entries.
        strength: At least 0.

    Example:
        >>> KSupport(k=1).value(torch.tensor([3.0, -1.0]))
        tensor(8., dtype=torch.float64)

    Reference:
        Argyriou et al., 2012, arXiv 1204.5043, proposition 2.1.
    """

    k: int
    strength: float = 1.0

    def __post_init__(self) -> None:
        check_count(self.k)
        check_strength(self.strength)

    @property
    def couples_rows(self) -> bool:
        """Always: all entries of x share the k places."""
        return True

    @property
    def _envelope(self) -> GroupEnvelope:
        return GroupEnvelope(k=self.k, strength=self.strength)

    def value(self, x: Tensor) -> Tensor:
        """Returns strength / 2 * squared k-support norm."""
        return self._envelope.value(x.reshape(-1))

    def prox(self, x: Tensor, step: float) -> Tensor:
        """Returns the prox, in the shape of x."""
        return self._envelope.prox(x.reshape(-1), step).view(x.shape)


def weights_of(weighting: Weighting, sizes: Tensor) -> Tensor:
    """Returns the weights d_j of groups of these sizes: (groups,)."""
    return sizes ** {"one": 0.0, "size": 1.0, "sqrt_size": 0.5, "inverse_size": -1.0}[weighting]


def _shrinkage(u: Tensor, decay: Tensor) -> Tensor:
    """Returns u / (decay + u), 0 where u is 0; in place of u."""
    # The bound tells only where both are zero, and spares a mask of all groups.
    return u.div_((decay + u).clamp_(min=torch.finfo(u.dtype).tiny))
