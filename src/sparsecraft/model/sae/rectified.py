"""An autoencoder of signed codes as one of twice the width whose codes are not negative.

AbsTopK keeps magnitudes with their signs; formats that clamp codes at zero would drop half of such
a code. With the encoder [W_enc, -W_enc] and the dictionary [W_dec; -W_dec] the same outputs come
from positive entries alone: of each mirrored pair at most one is positive.
"""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue
from sparsecraft.model.sae.autoencoder import SparseAutoencoder


def rectified(sae: SparseAutoencoder) -> SparseAutoencoder:
    """Returns a copy with 2 * d_sae latents, none negative, that gives the same outputs.

    Latent j becomes j for its positive part and d_sae + j for its negative part; with nested
    dictionaries (`prefixes`) the two halves follow each other in each dictionary's own share.

    Args:
        sae: With an activation of signed codes, such as AbsTopK.

    Raises:
        InvalidValue: If its codes are not signed, or it unrolls more than one step.

    Example:
        >>> from sparsecraft.methods.codes.abstopk import AbsTopK
        >>> sae = SparseAutoencoder(d_in=4, d_sae=8, activation=AbsTopK(k=2))
        >>> copy, x = rectified(sae), torch.randn(3, 4)
        >>> copy.d_sae, torch.allclose(copy(x), sae(x), atol=1e-6), bool((copy.encode(x) < 0).any())
        (16, True, False)

    Reference:
        Zhu et al., 2025, arXiv 2510.00404: AbsTopK of P latents is TopK of 2P mirrored ones.
    """
    activation = sae.activation.rectified()
    if activation is None:
        raise InvalidValue(
            f"{type(sae.activation).__name__} has no mirrored form: its codes "
            "have no sign to write as two latents. Save it as it is."
        )
    if sae.unroll != 1:
        raise InvalidValue(
            f"unroll={sae.unroll}: only a single step of the encoder is the same on mirrored "
            "latents. Set unroll=1 before the export; outputs then change."
        )
    mirror = SparseAutoencoder(
        sae.d_in,
        2 * sae.d_sae,
        activation,
        d_out=sae.d_out,
        transcoder=sae.transcoder,
        skip=sae.W_skip is not None,
        tied=sae.tied,
        row_norm=sae.row_norm,
        prefixes=tuple(2 * prefix for prefix in sae.prefixes),
        subtract_bias=sae.subtract_bias,
    ).to(sae.W_dec)
    mirror.load_state_dict(_mirrored(sae))
    mirror.info = copy.deepcopy(sae.info)
    return mirror.train(sae.training)


def _mirrored(sae: SparseAutoencoder) -> dict[str, Tensor]:
    """Returns the state of the copy: what belongs to a latent twice, with its sign."""
    state = {name: tensor.detach().clone() for name, tensor in sae.state_dict().items()}
    index, sign = _halves(sae)
    state["W_dec"] = state["W_dec"][index] * sign[:, None]
    state["b_enc"] = state["b_enc"][index] * sign
    if sae.tied:
        state["scale"] = state["scale"][index]
    else:
        state["W_enc"] = state["W_enc"][:, index] * sign
    return state


def _halves(sae: SparseAutoencoder) -> tuple[Tensor, Tensor]:
    """Returns (2 * d_sae,) the latent each comes from, and its sign."""
    index, sign = [], []
    for begin, end in pairwise((0, *(sae.prefixes or (sae.d_sae,)))):
        own = torch.arange(begin, end)
        index += [own, own]
        sign += [torch.ones(len(own)), -torch.ones(len(own))]
    device = sae.W_dec.device
    return torch.cat(index).to(device), torch.cat(sign).to(sae.W_dec)
