"""A 2:4 sparse weight as PyTorch's own semi-structured tensor, for GPUs that multiply with it.

Whether it is faster than dense there has not been measured here: no GPU was at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from sparsecraft.kernels.linear.format import WeightFormat, checked_tensors, checked_weight
from sparsecraft.kernels.linear.quantise import dtype_name, stored, torch_dtype


@dataclass(frozen=True, eq=False)
class SemiStructured(WeightFormat):
    """A weight with at most 2 entries in each 4 consecutive inputs, on a CUDA device.

    Args:
        compressed: PyTorch's semi-structured tensor of the weight.
    """

    name: ClassVar[str] = "semi_structured"
    dtypes: ClassVar[tuple[str, ...]] = ("bfloat16", "float32")

    compressed: Tensor

    @classmethod
    def pack(cls, weight: Tensor, dtype: str = "float32") -> Self:
        """Returns the weight as a semi-structured tensor; see `WeightFormat.pack`.

        Raises:
            ValueError: Also if the weight is not on a CUDA device, is not 2:4, or has a shape that
                PyTorch refuses.
        """
        found = checked_weight(cls, weight, dtype)
        if found.shape[1] % 4 or bool(((found != 0).view(len(found), -1, 4).sum(-1) > 2).any()):
            raise ValueError("the weight is not 2:4: some 4 consecutive inputs keep more than 2")
        if found.device.type != "cuda":
            raise ValueError(
                f"the format semi_structured needs a CUDA device, and the weight is on "
                f"{found.device}; on a CPU the format bitmask holds 2:4 as well"
            )
        entries = stored(found, dtype)[0].contiguous()
        try:
            return cls(torch.sparse.to_sparse_semi_structured(entries))
        except (RuntimeError, NotImplementedError) as error:
            raise ValueError(f"PyTorch cannot make a semi-structured tensor: {error}") from error

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        return self.compressed.shape[0], self.compressed.shape[1]

    @property
    def dtype(self) -> str:
        """The type of the stored numbers."""
        return dtype_name(self.compressed.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of what the device holds: half the values, and 2 bits for each of them."""
        outputs, inputs = self.shape
        return outputs * inputs // 2 * self.compressed.element_size() + outputs * inputs // 8

    def unpack(self) -> Tensor:
        """Returns the stored weight, dense."""
        return self.compressed.to_dense()

    def tensors(self) -> dict[str, Tensor]:
        """Returns the dense `weight`; the compressed form is the device's own."""
        return {"weight": self.unpack()}

    @classmethod
    def from_tensors(
        cls, shape: tuple[int, int], dtype: str, tensors: Mapping[str, Tensor]
    ) -> Self:
        """Returns the weight whose `tensors()` these are."""
        (weight,) = checked_tensors(cls, tensors, {"weight": (torch_dtype(dtype), shape)})
        return cls.pack(weight, dtype)

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        # PyTorch pads few rows to what the device's product needs.
        product = torch.nn.functional.linear(x.to(self.compressed.dtype), self.compressed)
        return (product if bias is None else product + bias).to(x.dtype)
