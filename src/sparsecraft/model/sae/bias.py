"""The first bias of the decoder: a centre of the activations, in the units of the training."""

from __future__ import annotations

from torch import Tensor

ROWS = 8192


def geometric_median(rows: Tensor, iterations: int = 100, tolerance: float = 1e-6) -> Tensor:
    """Returns the point (width,) whose distances to all rows have the smallest sum.

    Args:
        rows: (rows, width).
        iterations: At most so many of Weiszfeld's.
        tolerance: Relative step at which it stops.

    Example:
        >>> import torch
        >>> geometric_median(torch.tensor([[0.0], [1.0], [100.0]])).round().tolist()
        [1.0]

    Reference:
        Weiszfeld, 1937, Tohoku Mathematical Journal 43.
    """
    rows = rows.double()
    point = rows.mean(0)
    for _ in range(iterations):
        distances = (rows - point).norm(dim=1).clamp_min(1e-12)
        weights = 1 / distances
        moved = (weights @ rows) / weights.sum()
        step = float((moved - point).norm())
        point = moved
        if step <= tolerance * float(point.norm()):
            break
    return point.float()
