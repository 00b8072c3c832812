"""One scalar that brings activations to a common size for training, and its way into the weights.

Activations are multiplied so that E ||x|| = sqrt(d_in); then learning rates and penalties mean the
same for every model and layer. The scalar is folded into the weights as soon as the training ends,
and into every autoencoder that is written before: what reads raw activations needs no other number.
Codes and thresholds stay as they were in training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sparsecraft.model.sae.autoencoder import SparseAutoencoder


@dataclass(frozen=True)
class Scaling:
    """What inputs and targets are multiplied by in training.

    Args:
        inputs: Of what is encoded.
        targets: Of what is reconstructed; another number only where b_dec is not subtracted from
            inputs.
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
    if sae.tied:
        sae.W_dec.mul_(s)
        cast(Tensor, sae.scale).div_(s * t)
    else:
        sae.W_enc.mul_(s)
        sae.W_dec.div_(t)
    sae.b_dec.div_(t)
    if sae.W_skip is not None:
        sae.W_skip.mul_(s / t)


@torch.no_grad()
def make_rows_unit(sae: SparseAutoencoder) -> None:
    """Gives each row of the decoder norm one, in place; a row of zeros stays."""
    norms = sae.W_dec.norm(dim=1, keepdim=True)
    sae.W_dec.div_(norms.clamp_min(torch.finfo(norms.dtype).tiny))
