"""One scalar that brings activations to a common size for training, and its way into the weights.

Activations are multiplied so that E ||x|| = sqrt(d_in); then learning rates and penalties mean the
same for every model and layer. The scalar is folded into the weights as soon as the training ends,
and into every autoencoder that is written before: what reads raw activations needs no other number.
Codes and thresholds stay as they were in training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from sparsecraft.model.sae.autoencoder import SparseAutoencoder


@dataclass(frozen=True)
class Scaling:
    """What inputs and targets are multiplied by in training.

    Args:
        inputs: Of what is encoded.
        targets: Of what is reconstructed; another number only for a transcoder.
    """

    inputs: float = 1.0
    targets: float = 1.0

    @property
    def inverse(self) -> Scaling:
        """The scaling that undoes this one."""
        return Scaling(1 / self.inputs, 1 / self.targets)


@torch.no_grad()
def fold(sae: SparseAutoencoder, scaling: Scaling) -> None:
    """Makes an autoencoder that reads scaled activations read raw ones, in place.

    With inputs s and targets t: W_enc s, W_dec / t, b_dec / t, W_skip s / t; a tied encoder scales
    its directions by s and their sizes by 1 / (s t). The code of a raw row is the code that its
    scaled row had.
    """
    if sae.row_norm != "none" or scaling == Scaling():
        return
    s, t = scaling.inputs, scaling.targets
    if sae.subtracts_bias and s != t:
        # (s x - b) W = (x - b / t) s W + b W (s / t - 1)
        sae.b_enc += (s / t - 1) * (sae.b_dec @ sae.encoder())
    if sae.W_enc is None:
        sae.W_dec *= s
        sae.scale /= s * t  # type: ignore[operator]
    else:
        sae.W_enc *= s
        sae.W_dec /= t
    sae.b_dec /= t
    if sae.W_skip is not None:
        sae.W_skip *= s / t


@torch.no_grad()
def make_rows_unit(sae: SparseAutoencoder) -> None:
    """Gives each row of the decoder norm one, in place; a row of zeros stays."""
    norms = sae.W_dec.norm(dim=1, keepdim=True)
    sae.W_dec /= norms.clamp_min(torch.finfo(norms.dtype).tiny)
