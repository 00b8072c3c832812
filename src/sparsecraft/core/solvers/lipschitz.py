"""The largest curvature of 1/2 ||x - codes @ dictionary||^2, which bounds the step of a gradient.

Up to a few thousand atoms or dimensions the eigenvalues of the smaller product are exact and take
milliseconds. Beyond that power iteration is used, which approaches the value from below, so a
margin is added: a step that is a little short costs a few iterations, one that is too long costs
convergence.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsecraft.core.errors import NonFinite
from sparsecraft.core.seeds import generator

LARGEST_EXACT = 2048
POWER_STEPS, MARGIN = 50, 1.02


def lipschitz(dictionary: Tensor) -> float:
    """Returns the square of the dictionary's spectral norm, never less than 1e-12.

    Args:
        dictionary: (components, d), finite.

    Raises:
        NonFinite: If it has NaN or infinite entries.

    Example:
        >>> round(lipschitz(torch.tensor([[3.0, 0.0], [0.0, 1.0]])), 4)
        9.0
    """
    if not bool(torch.isfinite(dictionary).all()):
        raise NonFinite("the dictionary has NaN or infinite entries")
    found = _exact(dictionary) if min(dictionary.shape) <= LARGEST_EXACT else _power(dictionary)
    return max(found, 1e-12)


def _exact(dictionary: Tensor) -> float:
    tall = dictionary if dictionary.shape[0] >= dictionary.shape[1] else dictionary.T
    return float(torch.linalg.eigvalsh((tall.T @ tall).double())[-1])


def _power(dictionary: Tensor) -> float:
    vector = torch.randn(dictionary.shape[1], generator=generator(0, "lipschitz")).to(dictionary)
    for _ in range(POWER_STEPS):
        vector = dictionary.T @ (dictionary @ (vector / vector.norm().clamp_min(1e-30)))
    return MARGIN * float(vector.norm())
