"""A dense weight, row by row: the honest rival of every sparse format.

Few rows are multiplied by a native loop that reads the weight once, at the speed of the memory;
many rows by PyTorch's own matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from sparsecraft.kernels.linear import native
from sparsecraft.kernels.linear.choice import choose
from sparsecraft.kernels.linear.format import (
    checked_weight,
    differentiable,
    product_in_tiles,
    run,
)
from sparsecraft.kernels.linear.quantise import dtype_name, stored
from sparsecraft.kernels.linear.whole_weight import WholeWeight

# Up to so many rows reading the weight once for four rows is faster than PyTorch's blocked product,
# and than widening the weight for it where the input is not of its type.
FEW_ROWS = {"float32": 12, "bfloat16": 8, "int8": 64}
FEW_WIDENED_ROWS = 64


@dataclass(frozen=True, eq=False)
class Dense(WholeWeight):
    """A weight stored whole: float32, bfloat16, or int8 with a scale for each output.

    Args:
        weight: (outputs, inputs).
        scales: (outputs,) float32 with int8, else None.

    Example:
        >>> Dense.pack(torch.eye(2), "int8").multiply(torch.tensor([[3.0, 4.0]]))
        tensor([[3., 4.]])
    """

    name: ClassVar[str] = "dense"

    @classmethod
    def pack(cls, weight: Tensor, dtype: str = "float32") -> Self:
        """Returns the weight stored whole; see `WeightFormat.pack`."""
        entries, scales = stored(checked_weight(cls, weight, dtype), dtype)
        return cls(entries.contiguous(), scales)

    def unpack(self) -> Tensor:
        """Returns the stored weight, dequantised."""
        return unpacked(self.weight, self.scales)

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return run(dense, dense_product, x, bias, self.weight, self.scales)


def unpacked(weight: Tensor, scales: Tensor | None) -> Tensor:
    """Returns a dense weight, dequantised where it has scales."""
    return weight if scales is None else weight.float() * scales[:, None]


def dense_product(x: Tensor, bias: Tensor | None, weight: Tensor, scales: Tensor | None) -> Tensor:
    """Returns x times the transposed weight plus bias, by the fastest code that applies."""
    dtype = dtype_name(weight.dtype)
    widened = dtype == "bfloat16" and x.dtype != weight.dtype
    few = x.shape[0] <= (FEW_WIDENED_ROWS if widened else FEW_ROWS[dtype])
    if few and choose(x, "dense", dtype) == "native":
        return native.dense(x, bias, weight, scales)
    if weight.dtype == x.dtype:
        return torch.nn.functional.linear(x, weight, None if bias is None else bias.to(x.dtype))

    def tile(first: int, last: int) -> Tensor:
        return unpacked(weight[first:last], None if scales is None else scales[first:last]).float()

    return product_in_tiles(x, weight.shape[0], tile, bias)


@torch.library.custom_op("sparsecraft::dense", mutates_args=())
def dense(x: Tensor, bias: Tensor | None, weight: Tensor, scales: Tensor | None) -> Tensor:
    """The product as an operator that compilers can see."""
    return dense_product(x, bias, weight, scales)


@dense.register_fake
def _(x: Tensor, bias: Tensor | None, weight: Tensor, scales: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


differentiable(dense, unpacked)
