"""First-order effects of a code on the model's loss: what a latent does, and what is left out.

Writing x as a sum of latents, the loss changes by about -z_j <d_j, g> when latent j is taken away,
where g is the loss's gradient with respect to x; and by <x - x_hat, g> (with its sign) when the
reconstruction stands for x.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsecraft.core.code import Code
from sparsecraft.core.errors import InvalidValue, NonFinite


def influence(decoder: Tensor, gradient: Tensor) -> Tensor:
    """Returns |<d_j, g>| (rows, d_sae), the size of each direction's first-order effect.

    Args:
        decoder: (d_sae, d_out).
        gradient: (rows, d_out).

    Example:
        >>> influence(torch.eye(2), torch.tensor([[3.0, -4.0]])).tolist()
        [[3.0, 4.0]]

    Reference:
        Olmo et al., 2024, arXiv 2411.10397.
    """
    return (gradient @ decoder.T).abs()


def attribution_sum(z: Tensor | Code, decoder: Tensor, gradient: Tensor) -> Tensor:
    """Returns the mean over rows of sum_j |z_j <d_j, g>|, which is small if few latents matter.

    Args:
        z: The code (rows, d_sae).
        decoder: (d_sae, d_out).
        gradient: (rows, d_out), constant.

    Reference:
        Olah et al., 2024, transformer-circuits.pub/2024/april-update; Makelov, Lange, Nanda, 2024,
        arXiv 2405.08366.
    """
    effects = gradient @ decoder.T
    if isinstance(z, Code):
        return (z.values * effects[z.rows(), z.columns]).abs().sum() / len(z)
    return (z * effects).abs().sum(1).mean()


def unexplained_effect(target: Tensor, reconstruction: Tensor, gradient: Tensor) -> Tensor:
    """Returns the mean over rows of |<x - x_hat, g>|: what the reconstruction leaves out.

    Args:
        target: (rows, d_out).
        reconstruction: (rows, d_out).
        gradient: (rows, d_out), constant.

    Reference:
        As `attribution_sum`.
    """
    return ((target - reconstruction) * gradient).sum(1).abs().mean()


def check_gradient(gradient: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Returns the gradient, or raises unless it fits what it belongs to and is finite.

    Args:
        gradient: Of the model's loss.
        shape: Of the activations, (..., d).

    Raises:
        InvalidValue: For another shape.
        NonFinite: For NaN or infinite values, with the first row that has them.
    """
    if tuple(gradient.shape) != tuple(shape):
        raise InvalidValue(
            f"a gradient of shape {tuple(gradient.shape)} was given for activations of shape "
            f"{tuple(shape)}: give the gradient of the loss with respect to the very same ones"
        )
    finite = torch.isfinite(gradient).reshape(-1, shape[-1]).all(1)
    if not bool(finite.all()):
        bad = (~finite).nonzero()[:, 0]
        raise NonFinite(
            f"{len(bad)} of {len(finite)} rows have NaN or infinite gradients, first row "
            f"{int(bad[0])}: leave these tokens out of the store, or set their gradients to zero, "
            "which selects them as TopK does"
        )
    return gradient
