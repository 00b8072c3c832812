"""What formats have in common that store every entry of a weight, in whatever order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from sparsecraft.kernels.linear.format import WeightFormat, checked_tensors
from sparsecraft.kernels.linear.quantise import dtype_name, torch_dtype


@dataclass(frozen=True, eq=False)
class WholeWeight(WeightFormat):
    """All entries: float32, bfloat16, or int8 with a scale for each output.

    Args:
        weight: (outputs, inputs), or with its axes in another order.
        scales: (outputs,) float32 with int8, else None.
    """

    dtypes: ClassVar[tuple[str, ...]] = ("float32", "bfloat16", "int8")
    by_input: ClassVar[bool] = False
    """Whether the weight is stored (inputs, outputs)."""

    weight: Tensor
    scales: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        return _ordered((self.weight.shape[0], self.weight.shape[1]), self.by_input)

    @property
    def dtype(self) -> str:
        """The type of the stored numbers."""
        return dtype_name(self.weight.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """Returns `weight` as it is stored, and `scales` with int8."""
        scales = {} if self.scales is None else {"scales": self.scales}
        return {"weight": self.weight, **scales}

    @classmethod
    def from_tensors(
        cls, shape: tuple[int, int], dtype: str, tensors: Mapping[str, Tensor]
    ) -> Self:
        """Returns the weight whose `tensors()` these are."""
        expected: dict = {"weight": (torch_dtype(dtype), _ordered(shape, cls.by_input))}
        if dtype == "int8":
            expected["scales"] = (torch.float32, (shape[0],))
        return cls(*checked_tensors(cls, tensors, expected))


def _ordered(shape: tuple[int, int], swapped: bool) -> tuple[int, int]:
    return (shape[1], shape[0]) if swapped else shape
