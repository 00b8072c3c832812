"""Floating-point numbers as integers of the same order, so that selection works on exact bits.

The bits of a non-negative float, read as a signed integer, already have the order of the floats.
A negative float has the sign bit set and the magnitude below it; its key is minus that magnitude.
Both zeros get key 0, so they tie, and clearing the sign bit first orders by absolute value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparsecraft.kernels.backends import FLOATS

NAN = "the scores hold NaN, which has no rank; find the layer that made it, or clean the scores."

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

# Entries worked on at a time. Bounds the memory of a copy that a cast or a stride makes necessary.
SEGMENT = 1 << 20


@dataclass(frozen=True)
class Order:
    """How the entries of float tensors are compared.

    Args:
        dtype: Float type in which all tensors are compared.
        absolute: Compare magnitudes.
    """

    dtype: torch.dtype
    absolute: bool = False

    @property
    def integer(self) -> torch.dtype:
        """The signed integer type of the keys."""
        return _INTEGERS[self.dtype.itemsize]

    @property
    def bits(self) -> int:
        """The number of bits in a key."""
        return 8 * self.dtype.itemsize

    @property
    def lowest(self) -> int:
        """The smallest integer of the key's type: the lone sign bit."""
        return -(1 << (self.bits - 1))

    @property
    def clear(self) -> int:
        """The bits that count: all but the sign for magnitudes, else all."""
        return -self.lowest - 1 if self.absolute else -1

    @property
    def infinity(self) -> int:
        """The key of infinity; what lies beyond it on either side is NaN."""
        return int(self.raw(torch.tensor(float("inf"))))

    def raw(self, values: Tensor) -> Tensor:
        """Returns the bits of the values as signed integers, flat; a view if possible."""
        return values.detach().to(self.dtype).reshape(-1).view(self.integer)

    def keys(self, values: Tensor) -> Tensor:
        """Returns the keys of the values, flat: integers of the same order."""
        raw = self.raw(values) & self.clear
        return torch.where(raw < 0, self.lowest - raw, raw)

    def value(self, key: int) -> Tensor:
        """Returns the float with this key as a scalar tensor; +0 for the key of both zeros."""
        raw = key if key >= 0 else self.lowest - key
        return torch.tensor(raw, dtype=self.integer).view(self.dtype)

    def scalars(self) -> tuple[np.integer, np.integer, np.integer]:
        """Returns (clear, lowest, infinity) in the key's numpy type, for compiled loops."""
        kind = np.dtype(f"int{self.bits}").type
        return kind(self.clear), kind(self.lowest), kind(self.infinity)


def common_order(tensors: Sequence[Tensor], absolute: bool = False) -> Order:
    """Returns the order in which all these tensors can be compared exactly.

    Raises:
        ValueError: If a tensor is not of a supported float type.
    """
    dtype = tensors[0].dtype if tensors else torch.float32
    for tensor in tensors:
        if tensor.dtype not in FLOATS:
            allowed = ", ".join(str(kind).removeprefix("torch.") for kind in FLOATS)
            raise ValueError(f"scores of {tensor.dtype} cannot be ordered; allowed: {allowed}.")
        dtype = torch.promote_types(dtype, tensor.dtype)
    return Order(dtype, absolute)


def segments(tensor: Tensor) -> list[Tensor]:
    """Returns the tensor cut into pieces of at most `SEGMENT` entries, in flat order.

    The pieces are views. Those of a tensor that is not contiguous are strided; whoever needs
    their bits copies them one at a time.
    """
    flat = tensor.detach()
    if flat.is_contiguous() or flat.dim() == 0:
        flat = flat.reshape(-1)
    if not flat.numel():
        return []
    per_row = flat.numel() // flat.shape[0]
    if per_row > SEGMENT:
        return [piece for row in flat for piece in segments(row)]
    return list(flat.split(SEGMENT // per_row))
