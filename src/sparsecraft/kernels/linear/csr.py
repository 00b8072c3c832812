"""A very sparse weight: values and 16-bit columns, row after row.

The best form from about 90 percent zeros on: 6 bytes a kept entry in float32, 4 in bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from sparsecraft.kernels.linear import native
from sparsecraft.kernels.linear.bitmask import row_starts
from sparsecraft.kernels.linear.choice import choose
from sparsecraft.kernels.linear.format import (
    WeightFormat,
    checked_tensors,
    checked_weight,
    differentiable,
    plain_product,
    run,
)
from sparsecraft.kernels.linear.quantise import dtype_name, stored, torch_dtype

MOST_INPUTS = 1 << 16


@dataclass(frozen=True, eq=False)
class Csr(WeightFormat):
    """A sparse weight in compressed rows with 16-bit columns.

    Args:
        inputs: Number of columns, at most 65536.
        columns: (kept,) uint16, ascending within a row.
        values: (kept,).
        starts: (outputs + 1,) int64, where each row starts and at last where it ends.

    Example:
        >>> weight = Csr.pack(torch.tensor([[0.0, 5.0], [7.0, 0.0]]))
        >>> weight.columns.tolist(), weight.starts.tolist()
        ([1, 0], [0, 1, 2])
    """

    name: ClassVar[str] = "csr"
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "bfloat16")

    inputs: int
    columns: Tensor
    values: Tensor
    starts: Tensor

    @classmethod
    def pack(cls, weight: Tensor, dtype: str = "float32") -> Self:
        """Returns the entries that are not zero; see `WeightFormat.pack`.

        An entry that is not zero but becomes so in the stored type stays as a stored zero.
        """
        found = checked_weight(cls, weight, dtype)
        if found.shape[1] > MOST_INPUTS:
            raise ValueError(
                f"{found.shape[1]} inputs are too many for 16-bit columns: at most {MOST_INPUTS}; "
                "use the format bitmask"
            )
        mask = found != 0
        columns = mask.nonzero()[:, 1].to(torch.uint16)
        return cls(found.shape[1], columns, stored(found[mask], dtype)[0], row_starts(mask.sum(1)))

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        return self.starts.shape[0] - 1, self.inputs

    @property
    def dtype(self) -> str:
        """The type of the stored numbers."""
        return dtype_name(self.values.dtype)

    def unpack(self) -> Tensor:
        """Returns the stored weight, dense."""
        return unpacked(self.columns, self.values, self.starts, self.inputs)

    def tensors(self) -> dict[str, Tensor]:
        """Returns `columns`, `values` and `starts`."""
        return {"columns": self.columns, "values": self.values, "starts": self.starts}

    @classmethod
    def from_tensors(
        cls, shape: tuple[int, int], dtype: str, tensors: Mapping[str, Tensor]
    ) -> Self:
        """Returns the weight whose `tensors()` these are."""
        outputs, inputs = shape
        kept = tensors["values"].numel() if "values" in tensors else None
        columns, values, starts = checked_tensors(
            cls,
            tensors,
            {
                "columns": (torch.uint16, (kept,)),
                "values": (torch_dtype(dtype), (kept,)),
                "starts": (torch.int64, (outputs + 1,)),
            },
        )
        if bool((starts.diff() < 0).any()) or int(starts[0]) or int(starts[-1]) != kept:
            raise ValueError(f"the rows' starts do not ascend from 0 to {kept}, the values' count")
        if kept and int(columns.to(torch.int32).max()) >= inputs:
            raise ValueError(f"a column exceeds the {inputs} inputs")
        return cls(inputs, columns, values, starts)

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return run(csr, csr_product, x, bias, self.columns, self.values, self.starts, self.inputs)


def unpacked(columns: Tensor, values: Tensor, starts: Tensor, inputs: int) -> Tensor:
    """Returns the dense weight of its parts."""
    outputs = starts.shape[0] - 1
    weight = torch.zeros(outputs, inputs, dtype=values.dtype, device=values.device)
    rows = torch.arange(outputs, device=values.device).repeat_interleave(starts.diff())
    weight[rows, columns.to(torch.int64)] = values
    return weight


def csr_product(
    x: Tensor, bias: Tensor | None, columns: Tensor, values: Tensor, starts: Tensor, inputs: int
) -> Tensor:
    """Returns x times the transposed weight plus bias, by the fastest code that applies."""
    code = choose(x, "csr", dtype_name(values.dtype))
    if code == "native":
        return native.csr(x, bias, columns, values, starts)
    if code == "numba":
        from sparsecraft.kernels.linear.products_numba import csr_rows

        return csr_rows(x, bias, columns, values, starts)
    return plain_product(x, unpacked(columns, values, starts, inputs), bias)


@torch.library.custom_op("sparsecraft::csr", mutates_args=())
def csr(
    x: Tensor, bias: Tensor | None, columns: Tensor, values: Tensor, starts: Tensor, inputs: int
) -> Tensor:
    """The product as an operator that compilers can see."""
    return csr_product(x, bias, columns, values, starts, inputs)


@csr.register_fake
def _(
    x: Tensor, bias: Tensor | None, columns: Tensor, values: Tensor, starts: Tensor, inputs: int
) -> Tensor:
    return x.new_empty(x.shape[0], starts.shape[0] - 1)


differentiable(csr, unpacked)
