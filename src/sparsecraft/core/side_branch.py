"""A low-rank branch beside a sparse matrix, of the sums of consecutive inputs (SLoRB).

W~ = m * W + S P, where P sums each `width` consecutive inputs and S has a column for each of these
sums. It costs outputs * inputs / width weights, and as many multiplications less the sums.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue

Initial = Literal["mean", "sum", "xavier"]


def check_width(inputs: int, width: int, name: str = "the layer") -> None:
    """Raises InvalidValue unless the width divides the number of inputs."""
    if width < 1 or inputs % width:
        raise InvalidValue(
            f"{name}: a side branch that sums {width} inputs needs a multiple of {width} inputs, "
            f"but there are {inputs}. Choose a width that divides it, or leave the layer out of "
            "the targets."
        )


def projection(inputs: int, width: int) -> Tensor:
    """Returns P (inputs / width, inputs), one where the input belongs to the sum.

    Example:
        >>> projection(4, 2)
        tensor([[1., 1., 0., 0.],
                [0., 0., 1., 1.]])
    """
    check_width(inputs, width)
    return torch.eye(inputs // width).repeat_interleave(width, dim=1)


def initial_side(
    weight: Tensor, keep: Tensor, width: int, initial: Initial, generator: torch.Generator
) -> Tensor:
    """Returns S (outputs, inputs / width) to begin with.

    Args:
        weight: (outputs, inputs).
        keep: bool of the same shape, True where kept.
        width: Inputs in a sum.
        initial: "mean" spreads the pruned weights of a sum over its inputs, "sum" gives each the
            whole of it, "xavier" draws uniformly.
        generator: For "xavier".

    Reference:
        AST, 2024, arXiv 2407.20584, and its official code.
    """
    check_width(weight.shape[1], width)
    if initial == "xavier":
        return _xavier((weight.shape[0], weight.shape[1] // width), generator).to(weight)
    pruned = weight.detach().masked_fill(keep, 0).unflatten(1, (-1, width))
    return pruned.sum(-1) / width if initial == "mean" else pruned.sum(-1)


def _xavier(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    bound = (6 / (shape[0] + shape[1])) ** 0.5
    return (2 * torch.rand(shape, generator=generator) - 1) * bound
