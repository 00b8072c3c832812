"""Products with sparse codes, differentiable: only the selected rows of the weights are touched.

Gradients of gradients are not there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparsecraft.kernels.codes.primitives import by_column, sampled_products, weighted_sums


def selected_pre_activations(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    starts: Tensor,
    columns: Tensor,
    *,
    found: Tensor | None = None,
    centre: Tensor | None = None,
) -> Tensor:
    """Returns (x - c) W + b at the selected entries (entries,), differentiable in x, W, b and c.

    The gradient of W touches selected columns only; it is stored by column, as W should be. That of
    a centre needs no gradient of x: it is the sum over rows, which one product with W gives.

    Args:
        x: (rows, d_in).
        weight: (d_in, width), stored by column (a transposed view), else it is copied.
        bias: (width,), or None.
        starts: int64 (rows + 1,).
        columns: int64 (entries,).
        found: (entries,), the values where a selection has them already; they are then not
            computed again. They must be those of x, W, b and c.
        centre: (d_in,), what is subtracted from each row of x, or None.

    Raises:
        ValueError: If starts and columns do not list entries of (rows, width).

    Example:
        >>> x, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0, 3.0], [0.0, 1.0, 1.0]])
        >>> selected_pre_activations(x, weight, None, torch.tensor([0, 2]), torch.tensor([0, 2]))
        tensor([1., 5.])
    """
    _check_entries(starts, columns, len(x), weight.shape[1])
    values: Tensor = _Selected.apply(x, weight.T, bias, starts, columns, found, centre)
    return values


def decode(
    starts: Tensor, columns: Tensor, values: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """Returns (rows, d_out): the sum of each row's values times weight rows, plus the bias.

    Differentiable in values, weight and bias. The gradient of a weight row that no entry selects
    is zero, and each row of it is written once.

    Args:
        starts: int64 (rows + 1,).
        columns: int64 (entries,).
        values: (entries,).
        weight: (width, d_out).
        bias: (d_out,), or None.

    Raises:
        ValueError: If starts and columns do not list entries of (rows, width).

    Example:
        >>> weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
        >>> starts, columns = torch.tensor([0, 2]), torch.tensor([0, 2])
        >>> decode(starts, columns, torch.tensor([3.0, 1.0]), weight, None)
        tensor([[5., 2.]])
    """
    _check_entries(starts, columns, len(starts) - 1, len(weight))
    out: Tensor = _Decoded.apply(starts, columns, values, weight, bias)
    return out


class _Selected(torch.autograd.Function):
    """u_ij = (x_i - c) . a_j + b_j at the entries (i, j), a_j rows of the transposed weight."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        starts: Tensor,
        columns: Tensor,
        found: Tensor | None,
        centre: Tensor | None,
    ) -> Tensor:
        x = x if centre is None else x - centre
        ctx.save_for_backward(x, weight, starts, columns)
        if found is not None:
            return found.clone()
        values = sampled_products(starts, columns, x, weight)
        return values if bias is None else values + bias[columns]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, starts, columns = ctx.saved_tensors
        by_x = by_weight = by_bias = by_centre = None
        if ctx.needs_input_grad[0]:
            by_x = weighted_sums(starts, columns, gradient, weight)
        if ctx.needs_input_grad[1]:
            listed = by_column(starts, columns, len(weight))
            by_weight = weighted_sums(listed.starts, listed.rows, gradient[listed.entries], x)
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[6]:
            by_bias = gradient.new_zeros(len(weight)).index_add_(0, columns, gradient)
        if ctx.needs_input_grad[6]:
            by_centre = -(by_bias @ weight)
        return by_x, by_weight, by_bias, None, None, None, by_centre


class _Decoded(torch.autograd.Function):
    """y_i = sum over entries (i, j) of z_ij w_j, plus the bias."""

    @staticmethod
    def forward(
        ctx: Any,
        starts: Tensor,
        columns: Tensor,
        values: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(starts, columns, values, weight)
        out = weighted_sums(starts, columns, values, weight)
        return out if bias is None else out.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        starts, columns, values, weight = ctx.saved_tensors
        by_values = by_weight = by_bias = None
        if ctx.needs_input_grad[2]:
            by_values = sampled_products(starts, columns, gradient, weight)
        if ctx.needs_input_grad[3]:
            listed = by_column(starts, columns, len(weight))
            by_weight = weighted_sums(listed.starts, listed.rows, values[listed.entries], gradient)
        if ctx.needs_input_grad[4]:
            by_bias = gradient.sum(0)
        return None, None, by_values, by_weight, by_bias


def _check_entries(starts: Tensor, columns: Tensor, rows: int, width: int) -> None:
    """Raises where entries would lie outside; on a GPU only the lengths are compared."""
    fits = len(starts) == rows + 1 and not starts.is_floating_point()
    if fits and columns.device.type == "cpu":
        steps = starts.diff()
        fits = int(starts[0]) == 0 and int(starts[-1]) == len(columns)
        fits = fits and bool((steps >= 0).all())
        fits = fits and (not len(columns) or 0 <= int(columns.min()) <= int(columns.max()) < width)
    if not fits:
        raise ValueError(
            f"starts {tuple(starts.shape)} and columns {tuple(columns.shape)} do not list entries "
            f"of ({rows}, {width}): starts must be integers (rows + 1,) that rise from 0 to the "
            "number of entries, and columns must lie from 0 to the width."
        )
