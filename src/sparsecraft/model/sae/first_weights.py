"""The weights that a training begins with.

An autoencoder reads along the directions that it writes: W_enc is the transpose of W_dec, whose
rows have norm one. A transcoder writes to another space than it reads. Its encoder has directions
of its own, and its decoder begins with zeros, as in sparsify: the first output is the bias, and no
random map has to be unlearned.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsecraft.core import seeds


def first_weights(
    d_in: int, d_sae: int, d_out: int, *, transcoder: bool, seed: int
) -> tuple[Tensor, Tensor]:
    """Returns the encoder's directions (d_sae, d_in) and W_dec (d_sae, d_out).

    Args:
        d_in: Width of what is read.
        d_sae: Latents.
        d_out: Width of what is written.
        transcoder: Whether that is another tensor.
        seed: Of the draw.
    """
    stream = seeds.generator(seed, "sae", "weights")
    rows = torch.randn(d_sae, d_in, generator=stream)
    directions = rows / rows.norm(dim=1, keepdim=True)
    return directions, torch.zeros(d_sae, d_out) if transcoder else directions.clone()
