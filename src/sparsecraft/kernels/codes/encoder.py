"""Pre-activations of a dictionary, and the selection from them without a matrix of all of them.

In bfloat16 the product costs half, and its results have 8 bits. To a selection they only propose: a
few more candidates than are kept go through the product again in the type of the weights, and the
choice among them, like every value, is exact. What is not exact: an entry that belongs to the
largest is missed if `MARGIN` others, too small by themselves, came out ahead of it in bfloat16.
Where all pre-activations are wanted (`pre_activations`) they keep the 8 bits of the product; the
bias is added, and gradients are computed, in the type of the input.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparsecraft.kernels.codes.memory import converted, empty
from sparsecraft.kernels.codes.primitives import sampled_products
from sparsecraft.kernels.codes.selection import Selected, select_rows

Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

# Candidates of a row beyond those that are kept, where bfloat16 proposes.
MARGIN = 16
# Bytes of the pre-activations that are formed at a time.
BUFFER = 1 << 26

Chosen = tuple[Tensor, Tensor, Tensor]


def pre_activations(
    x: Tensor, weight: Tensor, bias: Tensor | None, precision: Precision = "float32"
) -> Tensor:
    """Returns x W + b (rows, width) in the type of x, differentiable.

    With "bfloat16" factors and entries of the product x W are rounded to 8 bits, so that an entry
    is off by at most about 3 * 2^-9 times |x| |W|. Gradients are those of the product that is not
    rounded.

    Args:
        x: (rows, d_in).
        weight: (d_in, width), of the type of x.
        bias: (width,), or None.
        precision: Of the product: "float32" is the type of x, "bfloat16" sums in float32.

    Raises:
        ValueError: If the precision is unknown.
    """
    _check_precision(precision)
    if precision == "bfloat16":
        u: Tensor = _Rounded.apply(x, weight, bias)
        return u
    return x @ weight if bias is None else torch.addmm(bias.to(x.dtype), x, weight)


class _Rounded(torch.autograd.Function):
    """x W + b by way of a product in bfloat16; its gradients are those of the exact one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        u = (x.bfloat16() @ converted(weight, torch.bfloat16)).to(x.dtype)
        return u if bias is None else u.add_(bias.to(u.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        by_x = gradient @ weight.T if ctx.needs_input_grad[0] else None
        # Made by latent, as the weights are stored.
        by_weight = (gradient.T @ x).T if ctx.needs_input_grad[1] else None
        by_bias = gradient.sum(0) if ctx.needs_input_grad[2] else None
        return by_x, by_weight, by_bias


def encode_rows(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    keep: int,
    *,
    absolute: bool = False,
    precision: Precision = "float32",
) -> Chosen:
    """Returns the `keep` largest pre-activations of each row; some rows are formed at a time.

    Args:
        x: (rows, d_in).
        weight: (d_in, width), stored by column.
        bias: (width,), or None.
        keep: At most this many of a row; a zero is never selected, see `select_rows`.
        absolute: Whether magnitudes count.
        precision: Of the product that is selected from. With "bfloat16" it proposes candidates;
            the values, and the choice among candidates, are of the type of x.

    Returns:
        int64 starts (rows + 1,), int64 columns (entries,), and values (entries,), no gradients.

    Raises:
        ValueError: If the precision is unknown, `keep` is out of range, or there is a NaN.

    Example:
        >>> encode_rows(torch.eye(2), torch.tensor([[1.0, 2.0, 3.0], [3.0, 0.0, -1.0]]), None, 2)
        (tensor([0, 2, 3]), tensor([1, 2, 0]), tensor([2., 3., 3.]))
    """
    _check_precision(precision)
    with torch.no_grad():
        found = [
            refined_rows(part, weight, bias, u, keep, absolute=absolute)
            if u.dtype != x.dtype
            else _with_values(u, select_rows(u, keep, absolute=absolute))
            for part, u in _bands(x, weight, bias, precision)
        ]
    counts = torch.cat([starts.diff() for starts, _, _ in found])
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return starts, torch.cat([c for _, c, _ in found]), torch.cat([v for _, _, v in found])


def refined_rows(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rough: Tensor,
    keep: int,
    *,
    absolute: bool = False,
) -> Chosen:
    """Returns the `keep` largest of each row among the candidates that rough values propose.

    Args:
        x: (rows, d_in).
        weight: (d_in, width), stored by column.
        bias: (width,), or None.
        rough: (rows, width), x W + b in a narrower type.
        keep: At most this many of a row.
        absolute: Whether magnitudes count.

    Returns:
        Starts, columns and values as from `encode_rows`.
    """
    with torch.no_grad():
        proposed = min(keep + MARGIN, rough.shape[1])
        starts, columns = select_rows(rough, proposed, absolute=absolute)
        values = sampled_products(starts, columns, x, weight.T)
        values = values if bias is None else values + bias[columns]
        return _best_of(starts, columns, values, proposed, keep, absolute)


def _best_of(
    starts: Tensor, columns: Tensor, values: Tensor, proposed: int, keep: int, absolute: bool
) -> Chosen:
    """Returns the `keep` largest of each row's candidates, at most `proposed` of them."""
    taken = torch.arange(proposed, device=values.device) < starts.diff()[:, None]
    table = values.new_zeros(taken.shape)
    table[taken] = values
    chosen, places = select_rows(table, min(keep, proposed), absolute=absolute)
    rows = torch.arange(len(table), device=values.device).repeat_interleave(chosen.diff())
    entries = starts[rows] + places
    return chosen, columns[entries], values[entries]


def _bands(
    x: Tensor, weight: Tensor, bias: Tensor | None, precision: Precision
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields some rows of x at a time with their pre-activations, in one buffer for all."""
    dtype = torch.bfloat16 if precision == "bfloat16" else x.dtype
    inputs, weight = x.to(dtype), converted(weight, dtype)
    width = weight.shape[1]
    height = max(1, min(len(x), BUFFER // max(1, 4 * width)))
    buffer = empty((height, width), dtype, x.device)
    addend = None if bias is None else bias.to(dtype)
    for part, narrow in zip(x.split(height), inputs.split(height), strict=True):
        u = buffer[: len(part)]
        if addend is None:
            torch.mm(narrow, weight, out=u)
        else:
            torch.addmm(addend, narrow, weight, out=u)
        yield part, u


def _with_values(u: Tensor, selected: Selected) -> Chosen:
    starts, columns = selected
    rows = torch.arange(len(u), device=u.device).repeat_interleave(starts.diff())
    return starts, columns, u[rows, columns]


def _check_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} is not known; allowed: {', '.join(PRECISIONS)}.")
