"""One pass of Adam over a matrix, which may keep each row at norm one.

For a row w with gradient g it takes g out of its own direction, g - (g.w / w.w) w, moves the
moments, steps, and scales the row back to norm one: the row is read and written once. Rows that a
batch did not touch have gradient zero and still move by their moments, as in dense Adam.

Reference:
    Kingma and Ba, 2014, arXiv 1412.6980, algorithm 1. The projection: Bricken et al., 2023,
    "Towards Monosemanticity", and Gao et al., 2024, arXiv 2406.04093, appendix A.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecraft.kernels import backends

# Entries of a matrix that the reference works on at a time.
PART = 1 << 22


@dataclass(frozen=True)
class AdamStep:
    """The numbers of one step.

    Args:
        rate: Learning rate.
        count: Steps of the parameter, this one included, from 1.
        beta1: Decay of the mean of gradients.
        beta2: Decay of the mean of their squares.
        epsilon: Added to the root of the mean square.
        scale: What gradients are multiplied with first (a clipped norm).
    """

    rate: float
    count: int
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    scale: float = 1.0

    @property
    def size(self) -> float:
        """The learning rate over the first moment's bias correction."""
        return self.rate / (1 - self.beta1**self.count)

    @property
    def correction(self) -> float:
        """The root of the second moment's bias correction."""
        return math.sqrt(1 - self.beta2**self.count)


def adam_step(
    weight: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    step: AdamStep,
    *,
    unit_rows: bool = False,
) -> None:
    """Changes a weight and its moments in place by one step.

    Args:
        weight: Any shape; (rows, width) where rows are kept at norm one.
        gradient: Like the weight; it is read only.
        mean: Like the weight, the mean of gradients.
        square: Like the weight, the mean of squared gradients.
        step: Rate and decays.
        unit_rows: Whether the gradient is projected off each row, and rows end at norm one.

    Raises:
        ValueError: If rows are to be kept at norm one, and the weight is no matrix.
    """
    if unit_rows and weight.dim() != 2:
        raise ValueError(
            f"unit_rows keeps rows of a matrix at norm one; the weight has {weight.dim()} "
            "dimensions. Leave it off for this parameter."
        )
    tensors = [weight, gradient, mean, square]
    laid = None if backends.choose(tensors) == "torch" else _in_memory_order(tensors, unit_rows)
    with torch.no_grad():
        if laid is None:
            for w, g, m, v in zip(*(_parts(tensor) for tensor in tensors), strict=True):
                _reference(w, g, m, v, step, unit_rows)
            return
        from sparsecraft.kernels.codes.adam_numba import adam_rows

        adam_rows(laid, step, unit_rows)


def _in_memory_order(tensors: list[Tensor], unit_rows: bool) -> list[Tensor] | None:
    """Returns contiguous views, or None where there are none or the compiled loop does not apply.

    Only a gradient may be copied: what is written must be the tensors themselves.
    """
    kinds = {tensor.dtype for tensor in tensors}
    if len(kinds) > 1 or not kinds <= {torch.float32, torch.float64}:
        return None
    weight, gradient, mean, square = (tensor.detach() for tensor in tensors)
    written = [weight, mean, square]
    if all(tensor.is_contiguous() for tensor in written):
        return [weight, gradient.contiguous(), mean, square]
    turned = [tensor.mT if tensor.dim() == 2 else tensor for tensor in written]
    if unit_rows or not all(tensor.is_contiguous() for tensor in turned):
        return None
    return [turned[0], gradient.mT.contiguous(), turned[1], turned[2]]


def _parts(tensor: Tensor) -> list[Tensor]:
    """Returns views of some rows at a time."""
    if tensor.dim() == 0 or not tensor.numel():
        return [tensor]
    return list(tensor.split(max(1, PART * len(tensor) // tensor.numel())))


def _reference(
    weight: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, step: AdamStep, unit: bool
) -> None:
    gradient = gradient * step.scale
    if unit:
        along = (gradient * weight).sum(1, keepdim=True)
        size = weight.square().sum(1, keepdim=True)
        gradient -= torch.where(size > 0, along / size, 0.0) * weight
    mean.mul_(step.beta1).add_(gradient, alpha=1 - step.beta1)
    square.mul_(step.beta2).addcmul_(gradient, gradient, value=1 - step.beta2)
    weight.addcdiv_(mean, square.sqrt() / step.correction + step.epsilon, value=-step.size)
    if unit:
        norm = weight.norm(dim=1, keepdim=True)
        weight.mul_(torch.where(norm > 0, 1 / norm, 0.0))
