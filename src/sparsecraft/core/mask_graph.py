"""A mask as a graph between the outputs and the inputs of a layer, and how well it connects them.

Sparse-IFT (Thangarasa et al., 2023) compares masks by the spectral gap of this bipartite graph:
static random masks lose it as they get sparser, those of dynamic sparse training keep more of it.
The shares of weights that were ever and always active stand in the training report of the host.
"""

from __future__ import annotations

import math

from torch import Tensor

from sparsecraft.core.errors import InvalidValue


def spectral_gap(mask: Tensor) -> float:
    """Returns by how much a mask's graph beats the bound of a Ramanujan graph; higher is better.

    Kept weights are the edges. With mean degrees p and q of the two sides the gap is
    sqrt(p - 1) + sqrt(q - 1) - (second singular value); it is negative where the graph falls
    apart into pieces that few edges connect.

    Args:
        mask: bool (outputs, inputs, *kernel); kernel entries count as inputs of their own.

    Raises:
        InvalidValue: If there are fewer than two outputs or inputs.

    Example:
        >>> import torch
        >>> round(spectral_gap(torch.ones(5, 5, dtype=torch.bool)), 6)
        4.0
        >>> round(spectral_gap(torch.eye(3, dtype=torch.bool)), 6)
        -1.0

    Reference:
        Hoang et al., 2023, "Revisiting Pruning at Initialization Through the Lens of Ramanujan
        Graph".
    """
    edges = mask.flatten(1).double().cpu()
    if min(edges.shape) < 2:
        raise InvalidValue(
            f"a mask of shape {tuple(mask.shape)} has no spectral gap: it needs at least two "
            "outputs and two inputs"
        )
    second = float(edges.svd().S[1])
    degrees = (float(edges.sum()) / side for side in edges.shape)
    return sum(math.sqrt(max(0.0, degree - 1)) for degree in degrees) - second
