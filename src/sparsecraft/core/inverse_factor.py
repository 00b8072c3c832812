"""The Cholesky factor of an inverse Hessian, made once for all layers that share an input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.scores import check_finite

# Below this width a triangle is inverted by substitution, which is then as quick.
SMALLEST = 128

_made: WeakIdKeyDictionary = WeakIdKeyDictionary()


@dataclass(frozen=True)
class InverseFactor:
    """U with U^T U = (H + damping)^-1.

    Args:
        upper: (inputs, inputs), upper triangular.
        dead: bool (inputs,), inputs that were always zero.
    """

    upper: Tensor
    dead: Tensor


def inverse_factor(hessian: Tensor, damping: float, name: str) -> InverseFactor:
    """Returns the upper Cholesky factor of the damped inverse Hessian.

    The Hessian of dead inputs becomes one. Layers that share an input share the Hessian tensor,
    and with it the factor, for as long as the tensor lives.

    Args:
        hessian: (inputs, inputs) float32.
        damping: Added to the diagonal, as a fraction of its mean.
        name: Of the layer, for messages.

    Raises:
        NonFinite: If the Hessian has NaN or infinite entries.
        InvalidValue: If it is not positive definite in float32 with this damping.

    Reference:
        Frantar, Alistarh, 2023, arXiv 2301.00774, section 3.3.
    """
    kept = _made.setdefault(hessian, {})
    if damping not in kept:
        kept[damping] = _factor(hessian, damping, name)
    return kept[damping]


def _factor(hessian: Tensor, damping: float, name: str) -> InverseFactor:
    check_finite(hessian, f"{name}: the Hessian of its input")
    dead = hessian.diagonal() == 0
    damped = hessian.clone()
    damped.diagonal()[dead] = 1
    damped.diagonal().add_(damping * damped.diagonal().mean())
    # With the inputs in reverse order, H = M M^T for a lower M, and so H = R R^T for the upper R
    # that M is in the first order; H^-1 = R^-T R^-1, so that U = R^-1.
    lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
    if not failed:
        upper = _lower_inverse(lower).flip(0, 1)
    if failed or not torch.isfinite(upper).all():
        raise InvalidValue(
            f"{name}: the Hessian of its input is not positive definite in float32 at "
            f"damping={damping:g}. Use more calibration data, or a larger damping such "
            f"as {10 * damping:g}."
        )
    return InverseFactor(upper.contiguous(), dead)


def _lower_inverse(lower: Tensor) -> Tensor:
    """Returns the inverse of a lower triangle, by halves: most of the work is matrix products."""
    size = lower.shape[0]
    if size <= SMALLEST:
        identity = torch.eye(size, dtype=lower.dtype, device=lower.device)
        return torch.linalg.solve_triangular(lower, identity, upper=False)
    half = size // 2
    first, last = _lower_inverse(lower[:half, :half]), _lower_inverse(lower[half:, half:])
    result = torch.zeros_like(lower)
    result[:half, :half], result[half:, half:] = first, last
    result[half:, :half] = -(last @ (lower[half:, :half] @ first))
    return result
