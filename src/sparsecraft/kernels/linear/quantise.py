"""The types in which weights are stored, and int8 with one scale for each output."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 127
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
NAMES = {dtype: name for name, dtype in TYPES.items()}


def torch_dtype(name: str) -> torch.dtype:
    """Returns the torch type of a stored type's name."""
    return TYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """Returns the name of a stored type."""
    return NAMES.get(dtype) or str(dtype).removeprefix("torch.")


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Returns int8 entries and the scale of each output, so that entries * scales is near.

    Symmetric, rounded to the nearest: the largest entry of a row becomes 127, zero stays zero. A
    row of zeros has the scale one.

    Args:
        weight: (outputs, inputs), floats.

    Returns:
        (outputs, inputs) int8 and (outputs,) float32.

    Example:
        >>> entries, scales = quantised(torch.tensor([[127.0, -63.6], [0.0, 0.0]]))
        >>> entries.tolist(), scales.tolist()
        ([[127, -64], [0, 0]], [1.0, 1.0])
    """
    wide = weight.float()
    scales = wide.abs().amax(dim=1) / LARGEST
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))
    entries = (wide / scales[:, None]).round().clamp_(-LARGEST, LARGEST)
    return entries.to(torch.int8), scales


def stored(weight: Tensor, dtype: str) -> tuple[Tensor, Tensor | None]:
    """Returns the entries in the stored type, and the scales where it is int8."""
    if dtype == "int8":
        return quantised(weight)
    return weight.to(torch_dtype(dtype)), None
