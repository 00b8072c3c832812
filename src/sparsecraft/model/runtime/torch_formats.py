"""PyTorch's own dense products, as formats beside ours: what a layer is before it is packed.

The int8 and int4 products are PyTorch's weight-only ones, which have no public name; where they are
missing or refuse a shape, packing says so and goes on without them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsecraft.kernels.linear import WeightFormat
from sparsecraft.kernels.linear.quantise import dtype_name, quantised, torch_dtype

_GROUP = 64
_LEVELS = 15


@dataclass(frozen=True, eq=False)
class TorchDense(WeightFormat):
    """A weight as `torch.nn.Linear` has it; nothing is copied where the type is the weight's own.

    Args:
        weight: (outputs, inputs), float32 or bfloat16.

    Example:
        >>> TorchDense.pack(torch.eye(2)).multiply(torch.tensor([[3.0, 4.0]]))
        tensor([[3., 4.]])
    """

    name: ClassVar[str] = "torch"
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "bfloat16")

    weight: Tensor

    @classmethod
    def pack(cls, weight: Tensor, dtype: str = "float32") -> Self:
        """Returns the weight in the type asked for."""
        return cls(weight.detach().to(torch_dtype(dtype)))

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        return self.weight.shape[0], self.weight.shape[1]

    @property
    def dtype(self) -> str:
        """The type of the stored numbers."""
        return dtype_name(self.weight.dtype)

    def unpack(self) -> Tensor:
        """Returns the weight."""
        return self.weight

    def tensors(self) -> dict[str, Tensor]:
        """Returns `weight`."""
        return {"weight": self.weight}

    @classmethod
    def from_tensors(
        cls, shape: tuple[int, int], dtype: str, tensors: Mapping[str, Tensor]
    ) -> Self:
        """Returns the weight whose `tensors()` these are."""
        return cls(tensors["weight"])

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        added = None if bias is None else bias.to(self.weight.dtype)
        return F.linear(x.to(self.weight.dtype), self.weight, added).to(x.dtype)


@dataclass(frozen=True, eq=False)
class TorchInt8(WeightFormat):
    """PyTorch's weight-only int8 product, one scale for each output.

    Args:
        weight: int8 (outputs, inputs).
        scales: (outputs,), float32.
    """

    name: ClassVar[str] = "torch"
    dtypes: ClassVar[tuple[str, ...]] = ("int8",)

    weight: Tensor
    scales: Tensor

    @classmethod
    def pack(cls, weight: Tensor, dtype: str = "int8") -> Self:
        """Returns the quantised weight."""
        entries, scales = quantised(weight.detach())
        return cls(entries.contiguous(), scales)

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        return self.weight.shape[0], self.weight.shape[1]

    @property
    def dtype(self) -> str:
        """Always "int8"."""
        return "int8"

    def unpack(self) -> Tensor:
        """Returns the dequantised weight, float32."""
        return self.weight.float() * self.scales[:, None]

    def tensors(self) -> dict[str, Tensor]:
        """Returns `weight` and `scales`."""
        return {"weight": self.weight, "scales": self.scales}

    @classmethod
    def from_tensors(
        cls, shape: tuple[int, int], dtype: str, tensors: Mapping[str, Tensor]
    ) -> Self:
        """Returns the weight whose `tensors()` these are."""
        return cls(tensors["weight"], tensors["scales"])

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        y = torch._weight_int8pack_mm(x, self.weight, self.scales.to(x.dtype))
        return y if bias is None else y + bias.to(y.dtype)


@dataclass(frozen=True, eq=False)
class TorchInt4(WeightFormat):
    """PyTorch's weight-only int4 product: groups of 64 inputs share a scale and an offset.

    Args:
        packed: What PyTorch's packing made of the levels.
        scales_and_offsets: (groups, outputs, 2), bfloat16.
        size: (outputs, inputs).
    """

    name: ClassVar[str] = "torch"
    dtypes: ClassVar[tuple[str, ...]] = ("int4",)

    packed: Tensor
    scales_and_offsets: Tensor
    size: tuple[int, int]

    @classmethod
    def pack(cls, weight: Tensor, dtype: str = "int4") -> Self:
        """Returns the quantised weight.

        Raises:
            ValueError: If the inputs are not whole groups or the outputs no multiple of 16.
        """
        outputs, inputs = weight.shape
        if inputs % _GROUP or outputs % 16:
            raise ValueError(
                f"torch's int4 product needs inputs in groups of {_GROUP} and outputs in groups of "
                f"16, not {outputs} x {inputs}"
            )
        groups = weight.detach().float().view(outputs, inputs // _GROUP, _GROUP)
        low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        scale = ((high - low) / _LEVELS).clamp_min(1e-8)
        levels = ((groups - low) / scale).round().clamp_(0, _LEVELS).to(torch.int32)
        # The product computes (level - 8) * scale + offset.
        both = torch.cat([scale, low + 8 * scale], dim=-1).transpose(0, 1).contiguous().bfloat16()
        packed = _int4("_convert_weight_to_int4pack_for_cpu")(levels.view(outputs, inputs), 1)
        return cls(packed, both, (outputs, inputs))

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        return self.size

    @property
    def dtype(self) -> str:
        """Always "int4"."""
        return "int4"

    def unpack(self) -> Tensor:
        """Returns the dequantised weight, float32, by products with the unit vectors."""
        outputs, inputs = self.shape
        rows = torch.arange(inputs).split(512)
        parts = [self._product(F.one_hot(r, inputs).float(), None).t() for r in rows]
        return torch.cat(parts, dim=1).reshape(outputs, inputs)

    def tensors(self) -> dict[str, Tensor]:
        """Returns `packed` and `scales_and_offsets`."""
        return {"packed": self.packed, "scales_and_offsets": self.scales_and_offsets}

    @classmethod
    def from_tensors(
        cls, shape: tuple[int, int], dtype: str, tensors: Mapping[str, Tensor]
    ) -> Self:
        """Returns the weight whose `tensors()` these are."""
        return cls(tensors["packed"], tensors["scales_and_offsets"], shape)

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        multiply = _int4("_weight_int4pack_mm_for_cpu")
        y = multiply(x.bfloat16(), self.packed, _GROUP, self.scales_and_offsets).to(x.dtype)
        return y if bias is None else y + bias.to(y.dtype)


TORCH_FORMATS: dict[str, type[WeightFormat]] = {
    dtype: kind for kind in (TorchDense, TorchInt8, TorchInt4) for dtype in kind.dtypes
}
"""Stored type to the format that computes with it in PyTorch."""


def _int4(operator: str) -> Any:
    found = getattr(torch.ops.aten, operator, None)
    if found is None:
        raise ValueError(f"this torch has no {operator}")
    return found
