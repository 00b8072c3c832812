"""What each latent adds to an activation: how far along its direction, in the activation's units.

An autoencoder that normalises rows decodes in normalised units; here every amplitude is brought
back, so that amplitude times decoder row is what the activation itself has of the latent.
"""

from __future__ import annotations

import math

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
    if sae.transcoder or sae.W_skip is not None:
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

    Mean norms that differ by more than a fifth are suspect. None too where neither the file nor a
    training in this process says the norm.
    """
    known = trained_norm(sae)
    if known is None or sae.row_norm != "none":
        return None
    given = float(x.norm(dim=1).double().mean())
    if abs(given / known - 1) <= SCALE_TOLERANCE:
        return None
    return (
        f"the activations have a mean norm of {given:.4g}, those of the training had {known:.4g}: "
        "another hook point, or scaled otherwise? Autoencoders read raw activations."
    )


def trained_norm(sae: SparseAutoencoder) -> float | None:
    """Returns the mean norm of the activations that it was trained on, or None if unknown."""
    if "mean_norm" in sae.info:
        return float(sae.info["mean_norm"])
    # The file keeps how it was trained; inputs were brought to a mean norm of sqrt(d_in).
    scale = float(sae.info.get("training", {}).get("scale", 1))
    return None if scale == 1 else math.sqrt(sae.d_in) / scale
