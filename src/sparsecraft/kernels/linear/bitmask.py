"""A sparse weight as one bit for each entry and the kept values in a row.

The best form at 50 to 80 percent zeros: 1.125 bytes an entry in bfloat16 at half the entries,
where dense bfloat16 needs 2. N:M patterns need the same bits, so one kernel serves both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from sparsecraft.kernels.linear import native
from sparsecraft.kernels.linear.choice import choose
from sparsecraft.kernels.linear.format import (
    WeightFormat,
    checked_tensors,
    checked_weight,
    differentiable,
    plain_product,
    product_in_tiles,
    run,
)
from sparsecraft.kernels.linear.quantise import dtype_name, stored, torch_dtype

# Rows of bits end at whole words, so that a kernel never reads half of one.
WORD = 64
# Above this many rows the weight is unpacked a few outputs at a time, for PyTorch's own product.
FEW_ROWS = 32


@dataclass(frozen=True, eq=False)
class Bitmask(WeightFormat):
    """A sparse weight: bit j % 8 of byte j // 8 of a row says whether column j is kept.

    Args:
        inputs: Number of columns.
        bits: (outputs, bytes) uint8; bytes are a multiple of 8, bits past the last column zero.
        values: (kept,) the kept entries, row after row.
        starts: (outputs + 1,) int64, where each row's values start and at last where they end.
        scales: (outputs,) float32 with int8, else None.

    Example:
        >>> weight = Bitmask.pack(torch.tensor([[0.0, 5.0], [7.0, 0.0]]))
        >>> weight.bits[:, 0].tolist(), weight.values.tolist()
        ([2, 1], [5.0, 7.0])
    """

    name: ClassVar[str] = "bitmask"
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "bfloat16", "int8")

    inputs: int
    bits: Tensor
    values: Tensor
    starts: Tensor
    scales: Tensor | None = None

    @classmethod
    def pack(cls, weight: Tensor, dtype: str = "float32") -> Self:
        """Returns the entries that are not zero; see `WeightFormat.pack`.

        An entry that is not zero but becomes so in the stored type stays as a stored zero.
        """
        found = checked_weight(cls, weight, dtype)
        mask = found != 0
        entries, scales = stored(found, dtype)
        bits = packed_bits(mask)
        return cls(weight.shape[1], bits, entries[mask], row_starts(mask.sum(1)), scales)

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        return self.bits.shape[0], self.inputs

    @property
    def dtype(self) -> str:
        """The type of the stored numbers."""
        return dtype_name(self.values.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of bits, values and scales, and of the places where rows start."""
        return super().nbytes + self.starts.nbytes

    def unpack(self) -> Tensor:
        """Returns the stored weight, dense and dequantised."""
        return unpacked(self.bits, self.values, self.starts, self.scales, self.inputs)

    def tensors(self) -> dict[str, Tensor]:
        """Returns `bits` and `values`, and `scales` with int8."""
        scales = {} if self.scales is None else {"scales": self.scales}
        return {"bits": self.bits, "values": self.values, **scales}

    @classmethod
    def from_tensors(
        cls, shape: tuple[int, int], dtype: str, tensors: Mapping[str, Tensor]
    ) -> Self:
        """Returns the weight whose `tensors()` these are."""
        outputs, inputs = shape
        expected: dict = {
            "bits": (torch.uint8, (outputs, -(-inputs // WORD) * WORD // 8)),
            "values": (torch_dtype(dtype), (None,)),
        }
        if dtype == "int8":
            expected["scales"] = (torch.float32, (outputs,))
        bits, values, *scales = checked_tensors(cls, tensors, expected)
        mask = unpacked_bits(bits)
        starts = row_starts(mask.sum(1))
        if bool(mask[:, inputs:].any()) or int(starts[-1]) != values.numel():
            raise ValueError(
                f"the bits keep {int(starts[-1])} entries within and past {inputs} columns, but "
                f"there are {values.numel()} values"
            )
        return cls(inputs, bits, values, starts, *scales)

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        parts = (self.bits, self.values, self.starts, self.scales, self.inputs)
        return run(bitmask, bitmask_product, x, bias, *parts)


def packed_bits(mask: Tensor) -> Tensor:
    """Returns the bits of a mask, rows padded with zeros to words: (outputs, bytes) uint8."""
    padded = torch.nn.functional.pad(mask, (0, -mask.shape[1] % WORD))
    places = torch.arange(8, dtype=torch.uint8, device=mask.device)
    bytes_of_eight = padded.view(mask.shape[0], -1, 8).to(torch.uint8) << places
    return bytes_of_eight.sum(-1, dtype=torch.uint8)


def unpacked_bits(bits: Tensor) -> Tensor:
    """Returns the mask of packed bits, with the padding: (outputs, bytes * 8) bool."""
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return ((bits[:, :, None] >> places) & 1).bool().view(bits.shape[0], -1)


def row_starts(counts: Tensor) -> Tensor:
    """Returns where each row's values start, and at last where they end: (rows + 1,) int64."""
    return torch.nn.functional.pad(counts.to(torch.int64).cumsum(0), (1, 0))


def unpacked(
    bits: Tensor, values: Tensor, starts: Tensor, scales: Tensor | None, inputs: int
) -> Tensor:
    """Returns the dense weight of its parts, dequantised where it has scales."""
    weight = torch.zeros(bits.shape[0], inputs, dtype=values.dtype, device=bits.device)
    weight[unpacked_bits(bits)[:, :inputs]] = values
    return weight if scales is None else weight.float() * scales[:, None]


def bitmask_product(
    x: Tensor,
    bias: Tensor | None,
    bits: Tensor,
    values: Tensor,
    starts: Tensor,
    scales: Tensor | None,
    inputs: int,
) -> Tensor:
    """Returns x times the transposed weight plus bias, by the fastest code that applies."""
    if choose(x, "bitmask", dtype_name(values.dtype)) == "native":
        if x.shape[0] <= FEW_ROWS:
            return native.bitmask(x, bias, bits, values, starts, scales)
        return _in_tiles(x, bias, bits, values, starts, scales)
    return plain_product(x, unpacked(bits, values, starts, scales, inputs), bias)


def _in_tiles(
    x: Tensor,
    bias: Tensor | None,
    bits: Tensor,
    values: Tensor,
    starts: Tensor,
    scales: Tensor | None,
) -> Tensor:
    narrow = x.dtype == values.dtype == torch.bfloat16
    room = torch.empty(0, dtype=torch.bfloat16 if narrow else torch.float32)

    def tile(first: int, last: int) -> Tensor:
        made = room.resize_(last - first, x.shape[1])
        native.unpack_bitmask(bits, values, starts, scales, made, first)
        return made

    return product_in_tiles(x, bits.shape[0], tile, bias)


@torch.library.custom_op("sparsecraft::bitmask", mutates_args=())
def bitmask(
    x: Tensor,
    bias: Tensor | None,
    bits: Tensor,
    values: Tensor,
    starts: Tensor,
    scales: Tensor | None,
    inputs: int,
) -> Tensor:
    """The product as an operator that compilers can see."""
    return bitmask_product(x, bias, bits, values, starts, scales, inputs)


@bitmask.register_fake
def _(x: Tensor, bias: Tensor | None, bits: Tensor, *others: object) -> Tensor:
    return x.new_empty(x.shape[0], bits.shape[0])


differentiable(bitmask, unpacked)
