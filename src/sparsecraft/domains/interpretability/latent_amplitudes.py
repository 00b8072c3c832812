"""What each latent adds to an activation: how far along its direction, in the activation's units.

An autoencoder that normalises rows decodes in normalised units; here every amplitude is brought
back, so that amplitude times decoder row is what the activation itself has of the latent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue
from sparsecraft.model.sae import SparseAutoencoder

SCALE_TOLERANCE = 0.2


def amplitudes(sae: SparseAutoencoder, x: Tensor) -> Tensor:
    """Returns (rows, d_sae), the code of each row in the units of x (rows, d).

    Raises:
        InvalidValue: If the autoencoder reconstructs another tensor than it reads.
    """
    if sae.d_in != sae.d_out or sae.W_skip is not None:
        raise InvalidValue(
            "this autoencoder is a transcoder: its latents write to another tensor than they are "
            "read from, so activations cannot be edited along them"
        )
    with torch.no_grad():
        return sae.encode(x) * row_scale(sae, x)


def row_scale(sae: SparseAutoencoder, x: Tensor) -> Tensor:
    """Returns (rows, 1), the length in x of a step of one in the autoencoder's own units."""
    with torch.no_grad():
        _, undo = sae.normalise_rows(sae.check_input(x))
        ones = torch.ones(len(x), 1, dtype=sae.W_dec.dtype, device=sae.W_dec.device)
        return undo(ones) - undo(torch.zeros_like(ones))


def directions(sae: SparseAutoencoder) -> Tensor:
    """Returns (d_sae, d), what amplitudes multiply."""
    return sae.decoder_rows().detach()


def scale_warning(sae: SparseAutoencoder, x: Tensor) -> str | None:
    """Returns why x seems to be scaled otherwise than what the autoencoder was trained on, or None.

    Rows whose mean norm differs by more than a fifth from the training's are suspect. Where the
    file does not say that norm, only reconstructions far too long or short can tell.
    """
    given = float(x.norm(dim=1).mean())
    known = sae.info.get("mean_norm")
    if known is not None:
        ratio = given / float(known)
        if abs(ratio - 1) <= SCALE_TOLERANCE:
            return None
        return (
            f"the activations have a mean norm of {given:.4g}, those of the training had "
            f"{float(known):.4g}: another hook point, or scaled otherwise"
        )
    return None
