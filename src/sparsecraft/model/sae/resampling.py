"""Dead latents that start anew as directions of badly reconstructed inputs.

Bricken et al. (2023) draw inputs with probability proportional to the square of their loss, give
their directions to the dead latents, and set encoder rows to a fifth of the living ones' mean norm.
Moments of the optimiser are set to zero, else the old ones would undo it. Here the inputs are those
of one batch, over ranks that of the first, which all ranks then draw from. Thresholds, scales and
biases that an activation trains for each latent start anew too (`Activation.restart`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue

if TYPE_CHECKING:
    from sparsecraft.model.sae.autoencoder import SparseAutoencoder


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """When dead latents start anew.

    Args:
        every: Steps from one resampling to the next.
        until: Share of the steps after which none happens any more.
        encoder_norm: Norm of a new encoder row, relative to the mean of the living ones.

    Reference:
        Bricken et al., 2023, transformer-circuits.pub/2023/monosemantic-features, "Neuron
        Resampling".
    """

    every: int = 2500
    until: float = 0.5
    encoder_norm: float = 0.2

    def __post_init__(self) -> None:
        if not isinstance(self.every, int) or self.every < 1:
            raise InvalidValue(f"every={self.every!r} is not allowed: give at least 1 step")
        if not 0 <= self.until <= 1 or not self.encoder_norm > 0:
            raise InvalidValue(
                f"until={self.until!r}, encoder_norm={self.encoder_norm!r}: give a share from 0 "
                "to 1, and a number above 0"
            )

    def due(self, step: int, steps: int) -> bool:
        """Returns whether it happens after a step, counted from 1."""
        return step % self.every == 0 and step <= self.until * steps


@torch.no_grad()
def resample(
    sae: SparseAutoencoder,
    dead: Tensor,
    inner: Tensor,
    target: Tensor,
    errors: Tensor,
    encoder_norm: float,
    stream: torch.Generator,
) -> Tensor:
    """Gives dead latents the directions of rows drawn by their squared loss, in place.

    Args:
        sae: In training.
        dead: bool (d_sae,).
        inner: (rows, d_in), what was encoded.
        target: (rows, d_out).
        errors: (rows,), the losses.
        encoder_norm: See `Resampling`.
        stream: Of the draw.

    Returns:
        int64 (n,): the latents that start anew; none where nothing is dead or no row has a loss.
    """
    latents = dead.nonzero()[:, 0]
    weights = errors.double().square().cpu()
    if not len(latents) or not bool(weights.sum() > 0):
        return latents[:0]
    drawn = torch.multinomial(weights, len(latents), replacement=True, generator=stream)
    drawn = drawn.to(inner.device)
    living = ~dead
    inputs = _directions(sae.centred(inner)[drawn])
    outputs = _directions((target - sae.b_dec)[drawn])
    sae.W_dec[latents] = outputs
    if not sae.tied:
        norms = sae.W_enc.norm(dim=0)
        mean = norms[living].mean() if bool(living.any()) else norms.mean()
        sae.W_enc[:, latents] = (encoder_norm * mean * inputs).T
    elif sae.scale is not None:
        sae.scale[latents] = 1.0
    if not sae.activation.moves_bias:
        sae.b_enc[latents] = 0.0
    sae.activation.restart(sae.own, latents)
    return latents


def _directions(rows: Tensor) -> Tensor:
    norms = rows.norm(dim=1, keepdim=True)
    return rows / norms.clamp_min(torch.finfo(rows.dtype).tiny)
