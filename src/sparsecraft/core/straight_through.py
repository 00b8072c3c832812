"""The straight-through estimator: compute with one tensor, train another.

A masked or rounded weight has a gradient of zero almost everywhere, so that what was cut could
never learn. Bengio et al. (2013) let the gradient pass as if nothing had been done to the weight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue


class _StraightThrough(torch.autograd.Function):
    """Returns the first tensor; its gradient goes to the second one, unchanged."""

    @staticmethod
    def forward(value: Tensor, trained: Tensor) -> Tensor:
        # A view, because an input that is returned as it is would lose its link to the second.
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.dtype = inputs[1].dtype

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0].to(ctx.dtype)


def straight_through(value: Tensor, trained: Tensor) -> Tensor:
    """Returns `value`, whose gradient goes to `trained` as if the two were one.

    Nothing is added or copied, so that the values are exact, unlike in
    `trained + (value - trained).detach()`.

    Args:
        value: What is computed with; gradients do not flow into how it was made.
        trained: What gets the gradient, of the same shape.

    Raises:
        InvalidValue: If the shapes differ.

    Example:
        >>> weight = torch.tensor([3.0, -0.1], requires_grad=True)
        >>> cut = straight_through(weight.detach() * torch.tensor([1.0, 0.0]), weight)
        >>> (cut * torch.tensor([5.0, 7.0])).sum().backward()
        >>> cut.tolist(), weight.grad.tolist()
        ([3.0, -0.0], [5.0, 7.0])

    Reference:
        Bengio, Leonard, Courville, 2013, arXiv 1308.3432, section 4.
    """
    if value.shape != trained.shape:
        raise InvalidValue(
            f"a value of shape {tuple(value.shape)} cannot stand for a trained tensor of shape "
            f"{tuple(trained.shape)}: both must have one shape"
        )
    passed: Tensor = _StraightThrough.apply(value.detach(), trained)
    return passed
