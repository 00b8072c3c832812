"""Conjugate gradients for many systems side by side, and least squares on the support of codes.

Soft thresholding shrinks every entry that it keeps. Debiasing undoes that: with the support held,
the entries become those of the least-squares fit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue


@torch.no_grad()
def conjugate_gradient(
    product: Callable[[Tensor], Tensor],
    target: Tensor,
    *,
    start: Tensor | None = None,
    tolerance: float = 1e-6,
    max_steps: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the solutions of a symmetric positive system for each row, and whether each settled.

    Args:
        product: Takes (rows, n) to (rows, n), each row by its own positive (semi-)definite matrix.
        target: (rows, n).
        start: (rows, n), by default zeros.
        tolerance: Of the residual's norm, relative to the target's.
        max_steps: At most so many; by default 2 n.

    Returns:
        (rows, n), and bool (rows,).

    Example:
        >>> found, settled = conjugate_gradient(lambda v: 2 * v, torch.tensor([[4.0, 6.0]]))
        >>> found, settled
        (tensor([[2., 3.]]), tensor([True]))

    Reference:
        Hestenes and Stiefel, 1952, J. Res. NBS 49(6), eq. 3:1.
    """
    found = torch.zeros_like(target) if start is None else start.clone()
    residual = target - product(found)
    direction, size = residual, residual.square().sum(1)
    enough = (tolerance * target.norm(dim=1)).square()
    for _ in range(2 * target.shape[1] if max_steps is None else max_steps):
        open_ = size > enough
        if not bool(open_.any()):
            break
        image = product(direction)
        curvature = (direction * image).sum(1)
        # A row that is solved, or whose matrix is flat along the direction, stays as it is.
        length = torch.where(open_ & (curvature > 0), size / curvature, 0)[:, None]
        found = found + length * direction
        residual = residual - length * image
        following = residual.square().sum(1)
        direction = residual + torch.where(open_, following / size, 0)[:, None] * direction
        size = following
    return found, size <= enough


def debias(
    x: Tensor, dictionary: Tensor, codes: Tensor, *, tolerance: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Returns codes on the same support that fit x best, and whether each row's fit settled.

    Args:
        x: (rows, d).
        dictionary: (components, d).
        codes: (rows, components); their zeros stay zero.
        tolerance: Of the normal equations' residual, relative.

    Returns:
        (rows, components), and bool (rows,).

    Raises:
        InvalidValue: If the shapes do not fit.

    Example:
        >>> debias(torch.tensor([[3.0, 0.5]]), torch.eye(2), torch.tensor([[2.0, 0.0]]))[0]
        tensor([[3., 0.]])
    """
    if codes.shape != (len(x), len(dictionary)):
        raise InvalidValue(
            f"codes of shape {tuple(codes.shape)} were given for {len(x)} rows and "
            f"{len(dictionary)} components"
        )
    support = (codes != 0).to(x.dtype)

    def product(entries: Tensor) -> Tensor:
        return ((entries * support) @ dictionary) @ dictionary.T * support

    target = (x @ dictionary.T) * support
    most = 4 * int(support.sum(1).max()) + 20 if len(x) else 0
    return conjugate_gradient(product, target, start=codes, tolerance=tolerance, max_steps=most)
