"""A weight stored input by input, so that a gated product reads only what it needs.

An input that a gate closes costs nothing: its outputs' weights lie side by side and are never
touched. This is how the zeros of WINA, TEAL and CATS save time where the memory is the limit,
that is with few rows; the selection is part of the native call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from sparsecraft.kernels.linear import native, triton_gather
from sparsecraft.kernels.linear.choice import choose
from sparsecraft.kernels.linear.format import (
    checked_weight,
    differentiable,
    product_in_tiles,
    run,
)
from sparsecraft.kernels.linear.gate import Gate, gate_mask, gate_mask_operator
from sparsecraft.kernels.linear.quantise import dtype_name, stored
from sparsecraft.kernels.linear.whole_weight import WholeWeight

# Rows have gates of their own, so each reads the weight anew; above this masking the input of
# one dense product is faster.
FEW_ROWS = {"float32": 4, "bfloat16": 4, "int8": 32}


@dataclass(frozen=True, eq=False)
class ByInput(WholeWeight):
    """A dense weight stored by input: float32, bfloat16, or int8 with a scale for each output.

    Args:
        weight: (inputs, outputs).
        scales: (outputs,) float32 with int8, else None.

    Example:
        >>> weight = ByInput.pack(torch.tensor([[1.0, 10.0]]))
        >>> weight.multiply_gated(torch.tensor([[3.0, 4.0]]), Gate(keep=1))
        tensor([[40.]])
    """

    name: ClassVar[str] = "by_input"
    by_input: ClassVar[bool] = True

    @classmethod
    def pack(cls, weight: Tensor, dtype: str = "float32") -> Self:
        """Returns the weight stored by input; see `WeightFormat.pack`."""
        entries, scales = stored(checked_weight(cls, weight, dtype), dtype)
        return cls(entries.t().contiguous(), scales)

    def unpack(self) -> Tensor:
        """Returns the stored weight, dequantised."""
        return unpacked(self.weight, self.scales)

    def multiply_gated(self, x: Tensor, gate: Gate, bias: Tensor | None = None) -> Tensor:
        """Returns the product with the inputs that the gate keeps in each row, plus the bias.

        Args:
            x: (rows, inputs), float32 or bfloat16.
            gate: Which inputs each row keeps.
            bias: (outputs,), or None.

        Raises:
            ValueError: If the input, the gate or the bias does not fit.
        """
        self.check(x, bias)
        gate.check(self.shape[1])
        parts = (gate.threshold, gate.keep, gate.norms)
        return run(gated, gated_product, x, bias, self.weight, self.scales, *parts)

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        parts = (None, None, None)
        return run(gated, gated_product, x, bias, self.weight, self.scales, *parts)


def unpacked(weight: Tensor, scales: Tensor | None, *_: object) -> Tensor:
    """Returns a weight stored by input as (outputs, inputs), dequantised where it has scales."""
    return (weight if scales is None else weight.float() * scales).t()


def gated_product(
    x: Tensor,
    bias: Tensor | None,
    weight: Tensor,
    scales: Tensor | None,
    threshold: float | None,
    keep: int | None,
    norms: Tensor | None,
) -> Tensor:
    """Returns the product with the kept inputs, by the fastest code that applies.

    Without a threshold and a number to keep, all are kept.
    """
    dtype = dtype_name(weight.dtype)
    if x.shape[0] <= FEW_ROWS[dtype]:
        if x.device.type == "cuda" and triton_gather.available():
            mask = gate_mask(x, threshold, keep, norms)
            return triton_gather.gathered(x, bias, weight, scales, mask)
        code = choose(x, "by_input", dtype)
        if code == "native":
            return native.gated(x, bias, weight, scales, threshold, keep, norms)
        if code == "numba":
            from sparsecraft.kernels.linear.products_numba import gathered

            return gathered(x, bias, weight, gate_mask(x, threshold, keep, norms))
    if threshold is not None or keep is not None:
        x = x.masked_fill(~gate_mask(x, threshold, keep, norms), 0)
    if weight.dtype == x.dtype:
        product = x @ weight
        return product if bias is None else product + bias.to(x.dtype)

    def tile(first: int, last: int) -> Tensor:
        some = weight[:, first:last]
        return unpacked(some, None if scales is None else scales[first:last]).float()

    return product_in_tiles(x, weight.shape[1], tile, bias)


def _kept(x: Tensor, _weight: Tensor, _scales: Tensor | None, *gate: object) -> Tensor:
    return gate_mask_operator(x, *gate)


@torch.library.custom_op("sparsecraft::gated", mutates_args=())
def gated(
    x: Tensor,
    bias: Tensor | None,
    weight: Tensor,
    scales: Tensor | None,
    threshold: float | None,
    keep: int | None,
    norms: Tensor | None,
) -> Tensor:
    """The gated product as an operator that compilers can see."""
    return gated_product(x, bias, weight, scales, threshold, keep, norms)


@gated.register_fake
def _(
    x: Tensor, bias: Tensor | None, weight: Tensor, scales: Tensor | None, *gate: object
) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


differentiable(gated, unpacked, _kept)
