"""Which entries of a weight matter: the scores of the pruning criteria.

Tensors in, tensors out. Everywhere in the library the highest scores are kept; a paper that
removes the highest has its score negated here, and its function says so. Weights are matrices
(outputs, inputs).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from sparsecraft.core.errors import NonFinite


def check_finite(tensor: Tensor, what: str) -> None:
    """Raises NonFinite if the tensor holds NaN or infinity; needs no memory of its size.

    Args:
        tensor: Any floating tensor.
        what: Its name in the message, for example "layers.3.fc1: the weight".
    """
    if tensor.numel() == 0:
        return
    # The smallest and largest entry are NaN if any is, and no temporary of the same size is made.
    low, high = torch.aminmax(tensor.detach())
    if not (math.isfinite(float(low)) and math.isfinite(float(high))):
        bad = int((~torch.isfinite(tensor)).sum())
        raise NonFinite(
            f"{what} has {bad} NaN or infinite entries of {tensor.numel()}. "
            "Find where they come from before pruning: no score can rank them."
        )


def magnitude(weight: Tensor) -> Tensor:
    """Returns |W|.

    Reference:
        Han et al., 2015, arXiv 1506.02626, section 3.
    """
    return weight.abs()


def wanda(weight: Tensor, input_norm: Tensor) -> Tensor:
    """Returns |W_ij| * ||X_j||_2.

    Args:
        weight: (outputs, inputs).
        input_norm: (inputs,), the norm of each input over the calibration data, in any scale.

    Example:
        >>> wanda(torch.tensor([[1.0, -2.0]]), torch.tensor([3.0, 1.0]))
        tensor([[3., 2.]])

    Reference:
        Sun et al., 2023, arXiv 2306.11695, eq. 1.
    """
    return weight.abs() * input_norm


def obs(weight: Tensor, inverse_diagonal: Tensor) -> Tensor:
    """Returns W_ij^2 / U_jj^2: the error that removing an entry leaves after the best repair.

    Args:
        weight: (outputs, inputs).
        inverse_diagonal: (inputs,), the diagonal of U, the upper Cholesky factor of the inverse
            Hessian; U_jj^2 is the entry of the inverse Hessian of the inputs from j on.

    Reference:
        Frantar, Alistarh, 2023, arXiv 2301.00774, eq. 4; Hassibi, Stork, 1993.
    """
    return weight.square() / inverse_diagonal.square()


def snip(weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns |w * dL/dw| / sum over all layers of the same: connection sensitivity.

    Args:
        weights: Matrices by name.
        gradients: dL/dw by name.

    Reference:
        Lee et al., 2018, arXiv 1810.02340, eq. 6.
    """
    raw = {name: (weight * gradients[name]).abs() for name, weight in weights.items()}
    total = sum(float(score.sum(dtype=torch.float64)) for score in raw.values())
    return {name: score / total if total else score for name, score in raw.items()}


def grasp(weights: Mapping[str, Tensor], products: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns w * Hg / (|sum over all layers of the same| + 1e-10): what removing w costs in flow.

    The paper's score is the negative of this and its highest are removed.

    Args:
        weights: Matrices by name.
        products: Hg by name, H the Hessian and g the gradient of the loss.

    Reference:
        Wang, Zhang, Grosse, 2020, arXiv 2002.07376, eq. 8 and algorithm 2.
    """
    raw = {name: weight * products[name] for name, weight in weights.items()}
    total = abs(sum(float(score.sum(dtype=torch.float64)) for score in raw.values())) + 1e-10
    return {name: score / total for name, score in raw.items()}


def synflow(weight: Tensor, gradient: Tensor) -> Tensor:
    """Returns |w * dR/dw|: how much of the flow R passes through each entry.

    Args:
        weight: (outputs, inputs).
        gradient: dR/dw of the same shape.

    Reference:
        Tanaka et al., 2020, arXiv 2006.05467, eq. 2 with R of section 5.
    """
    return (weight * gradient).abs()
