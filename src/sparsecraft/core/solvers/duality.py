"""How far codes are from the best ones, where that can be known: the duality gap of the lasso."""

from __future__ import annotations

from torch import Tensor

from sparsecraft.core.penalties import check_strength


def lasso_gap(x: Tensor, dictionary: Tensor, codes: Tensor, strength: float) -> Tensor:
    """Returns (rows,): an upper bound on what the objective exceeds its minimum by.

    The objective of a row is 1/2 ||x - r D||^2 + strength ||r||_1. The residual, shrunk until no
    atom correlates with it by more than the strength, is a point of the dual.

    Args:
        x: (rows, d).
        dictionary: (components, d).
        codes: (rows, components).
        strength: At least 0.

    Example:
        >>> import torch
        >>> x = torch.tensor([[3.0, 0.5]])
        >>> lasso_gap(x, torch.eye(2), torch.tensor([[2.0, 0.0]]), strength=1.0)
        tensor([0.])

    Reference:
        Kim et al., 2007, IEEE JSTSP 1(4), section III.
    """
    check_strength(strength)
    residual = x - codes @ dictionary
    correlation = (residual @ dictionary.T).abs().amax(1)
    shrink = (strength / correlation.clamp_min(1e-30)).clamp_max(1)[:, None]
    primal = residual.square().sum(1) / 2 + strength * codes.abs().sum(1)
    dual = (x.square().sum(1) - (x - shrink * residual).square().sum(1)) / 2
    return (primal - dual).clamp_min(0)
