"""Losses that bring dead latents back, added to the reconstruction's.

AuxK (Gao et al., 2024) lets the dead latents reconstruct what the living ones leave over. In the
paper both losses are shares of variance. The reconstruction's is a sum of squares here, in units
of the activations, so the auxiliary one is brought to these units: its share of the residual's
variance, times the target's. Published implementations differ in this, and in whether the residual
is held constant and negative values are cut off; these are options. The residual has no bias left
in it, so none is added when it is decoded. Over ranks each takes the variances of its own rows.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from sparsecraft.core.code import Code
from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.kernels.codes import decode, select_rows

if TYPE_CHECKING:
    from sparsecraft.model.sae.autoencoder import SparseAutoencoder

Normalise = Literal["residual", "none"]
NORMALISE: tuple[Normalise, ...] = get_args(Normalise)


@dataclass(frozen=True)
class AuxiliaryStep:
    """A training batch as an auxiliary loss sees it, in the units of the loss.

    Args:
        sae: The autoencoder in training.
        inner: (rows, d_in), what was encoded.
        target: (rows, d_out).
        reconstruction: (rows, d_out), with its graph.
        z: The code.
        dead: bool (d_sae,).
        density: (d_sae,), the running share of rows in which each latent fires, NaN before the
            first batch; None unless the auxiliary loss asks for it.
    """

    sae: SparseAutoencoder
    inner: Tensor
    target: Tensor
    reconstruction: Tensor
    z: Tensor | Code
    dead: Tensor
    density: Tensor | None = None

    def pre_activations(self, latents: Tensor) -> Tensor:
        """Returns the pre-activations (rows, n) of some latents (n,), with their graph."""
        sae = self.sae
        weight = sae.W_dec[latents].T if sae.tied else sae.W_enc.T[latents].T
        return torch.addmm(sae.b_enc[latents], sae.centred(self.inner), weight)

    def directions(self, latents: Tensor) -> Tensor:
        """Returns the rows (n, d_out) of the decoder of some latents, with their graph."""
        rows = self.sae.W_dec[latents]
        return rows if self.sae.scale is None else rows * self.sae.scale[latents, None]


class Auxiliary(ABC):
    """A loss beside the reconstruction's, for latents that are used too little."""

    density_momentum: float | None = None
    """Of the running density of each latent, for a loss that asks for it; None: it does not."""

    @abstractmethod
    def loss(self, step: AuxiliaryStep) -> Tensor | None:
        """Returns the weighted loss, a scalar, or None where there is nothing to add."""


@dataclass(frozen=True, kw_only=True)
class AuxK(Auxiliary):
    """The k strongest dead latents of each row reconstruct its residual.

    Args:
        coefficient: Weight of the loss.
        k: Dead latents of a row; None: the power of two nearest to d_out / 2.
        normalise: "residual" counts the error as a share of the residual's variance, times that
            of the target; "none" counts it as it is.
        detach_residual: Whether the residual is held constant.
        rectify: Whether only positive pre-activations are decoded. Signed activations rank
            magnitudes instead, and decode both signs.

    Reference:
        Gao et al., 2024, arXiv 2406.04093, appendix A.2.
    """

    coefficient: float = 1 / 32
    k: int | None = None
    normalise: Normalise = "residual"
    detach_residual: bool = True
    rectify: bool = True

    def __post_init__(self) -> None:
        if self.normalise not in NORMALISE:
            raise UnknownName("normalise", str(self.normalise), NORMALISE)
        if not 0 <= self.coefficient < math.inf:
            raise InvalidValue(
                f"coefficient={self.coefficient!r} is not allowed: give a number of at least 0"
            )
        if self.k is not None and (not isinstance(self.k, int) or self.k < 1):
            raise InvalidValue(f"k={self.k!r} is not allowed: give a whole number of at least 1")

    def loss(self, step: AuxiliaryStep) -> Tensor | None:
        """Returns the loss, or None where no latent is dead."""
        return self.weighted_loss(step, step.dead.to(step.inner.dtype))

    def weighted_loss(self, step: AuxiliaryStep, weights: Tensor) -> Tensor | None:
        """Returns the loss of latents that each count by a weight, or None where all are 0.

        Args:
            step: The batch.
            weights: (d_sae,), in [0, 1]; what a latent's pre-activations are multiplied with.
        """
        latents = weights.nonzero()[:, 0]
        if not len(latents):
            return None
        wanted = self.k or nearest_power_of_two(step.target.shape[1] / 2)
        residual = step.target - step.reconstruction
        residual = residual.detach() if self.detach_residual else residual
        estimate = self._estimate(step, latents, weights[latents], min(wanted, len(latents)))
        error = (estimate - residual).square().sum(1).mean()
        scale = min(float(weights.sum()) / wanted, 1.0)
        return self.coefficient * scale * error * self._weight(step, residual)

    def _estimate(self, step: AuxiliaryStep, latents: Tensor, weights: Tensor, keep: int) -> Tensor:
        """Returns what the strongest of some latents make of each row, (rows, d_out)."""
        u = step.pre_activations(latents) * weights
        directions = step.directions(latents)
        if not (step.sae.activation.signed or self.rectify):
            found = u.topk(keep, dim=1, sorted=False)
            code = torch.zeros_like(u).scatter(1, found.indices, found.values)
            return code @ directions
        with torch.no_grad():
            starts, columns = select_rows(u.detach(), keep, absolute=step.sae.activation.signed)
        rows = torch.arange(len(u), device=u.device).repeat_interleave(starts.diff())
        return decode(starts, columns, u[rows, columns], directions, None)

    def _weight(self, step: AuxiliaryStep, residual: Tensor) -> Tensor | float:
        if self.normalise == "none":
            return 1.0
        left = _variance(residual)
        return _variance(step.target) / left.clamp_min(torch.finfo(left.dtype).tiny)


def _variance(rows: Tensor) -> Tensor:
    """Returns the mean squared distance of rows from their mean, held constant."""
    rows = rows.detach()
    return (rows - rows.mean(0)).square().sum(1).mean()


def nearest_power_of_two(value: float) -> int:
    """Returns the power of two nearest to a value of at least 1, on the scale of logarithms.

    Example:
        >>> nearest_power_of_two(384), nearest_power_of_two(5)
        (512, 4)
    """
    return int(2 ** round(math.log2(max(value, 1.0))))
