"""Atoms as pictures: the one check of shapes, and the grid of pixel positions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue, NonFinite

Shape = tuple[int, int]


def as_fields(components: Any, shape: Shape | None = None) -> tuple[Tensor, Shape]:
    """Returns atoms (n, pixels) in float64, and the (height, width) of their pictures.

    Args:
        components: (n, pixels), NumPy or torch, pixels row by row.
        shape: (height, width); by default a square.

    Raises:
        InvalidValue: If the shapes do not fit.
        NonFinite: For NaN or infinite entries.

    Example:
        >>> as_fields(torch.ones(3, 16))[1]
        (4, 4)
    """
    atoms = components if isinstance(components, Tensor) else torch.from_numpy(np.array(components))
    atoms = atoms.detach().cpu().double()
    if atoms.dim() != 2 or not atoms.numel():
        raise InvalidValue(f"atoms of shape {tuple(atoms.shape)}: give (n, pixels)")
    pixels = atoms.shape[1]
    if shape is None:
        side = math.isqrt(pixels)
        if side * side != pixels:
            raise InvalidValue(
                f"{pixels} pixels are no square: give the patches' shape=(height, width)"
            )
        shape = (side, side)
    if shape[0] * shape[1] != pixels:
        raise InvalidValue(f"shape={shape} has {shape[0] * shape[1]} pixels, the atoms {pixels}")
    if not bool(torch.isfinite(atoms).all()):
        raise NonFinite("the atoms have NaN or infinite entries")
    return atoms, shape


def positions(shape: Shape) -> tuple[Tensor, Tensor]:
    """Returns x (pixels,) to the right and y (pixels,) downwards, in pixels from the centre."""
    height, width = shape
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float64) - (height - 1) / 2,
        torch.arange(width, dtype=torch.float64) - (width - 1) / 2,
        indexing="ij",
    )
    return x.reshape(-1), y.reshape(-1)
