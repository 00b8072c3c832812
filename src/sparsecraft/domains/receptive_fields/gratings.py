"""Tuning of atoms to the orientation of gratings, as it is measured in the visual cortex.

A unit's response to a grating is the largest, over the grating's phase, of the inner product with
its atom: the modulus of a complex inner product. It is taken over all orientations at the frequency
at which the unit responds most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue
from sparsecraft.domains.receptive_fields.fields import Shape, as_fields, positions

FREQUENCIES = 16
"""Tried between one cycle in a patch and half a cycle per pixel, evenly in the logarithm."""


@dataclass(frozen=True)
class Tuning:
    """How n units respond to gratings.

    Args:
        orientations: (orientations,) radians in [0, pi), across the stripes.
        response: (n, orientations), at the preferred frequency.
        frequency: (n,), the preferred one, in cycles per pixel.
        preferred: (n,) radians, the preferred orientation.
        circular_variance: (n,) in [0, 1]: 1 - |sum R(t) e^(2it)| / sum R(t); 0 is sharpest.
        selectivity: (n,) in [0, 1]: (R_preferred - R_orthogonal) / (R_preferred + R_orthogonal).
        half_width: (n,) radians: half the width of the peak where it has fallen to 1 / sqrt(2);
            pi / 2 if it never does.
    """

    orientations: Tensor
    response: Tensor
    frequency: Tensor
    preferred: Tensor
    circular_variance: Tensor
    selectivity: Tensor
    half_width: Tensor


def grating_tuning(
    components: Any, shape: Shape | None = None, *, orientations: int = 36
) -> Tuning:
    """Returns the tuning of each atom.

    Args:
        components: (n, pixels), NumPy or torch.
        shape: (height, width) of the patches; by default a square.
        orientations: Even, at least 4; 36 is every 5 degrees.

    Raises:
        InvalidValue: If shapes or the number of orientations are not allowed.

    Example:
        >>> stripes = torch.tensor([[1.0, -1.0, 1.0, -1.0] * 4])
        >>> round(float(grating_tuning(stripes).preferred[0]), 3)  # across vertical stripes
        0.0

    Reference:
        Ringach, Shapley and Hawken, 2002, J. Neurosci. 22(13), circular variance;
        Rentzeperis et al., 2023, arXiv 2301.10002.
    """
    if orientations < 4 or orientations % 2:
        raise InvalidValue(f"orientations={orientations} is not allowed: give an even number >= 4")
    atoms, shape = as_fields(components, shape)
    angles = torch.arange(orientations, dtype=torch.float64) * math.pi / orientations
    lowest = min(1 / min(shape), 0.5)
    cycles = torch.logspace(math.log10(lowest), math.log10(0.5), FREQUENCIES, dtype=torch.float64)
    every = _responses(atoms, shape, angles, cycles)
    best = every.amax(2).argmax(1)
    response = every[torch.arange(len(atoms)), best]
    peak, top = response.max(1)
    across = response.gather(1, ((top + orientations // 2) % orientations)[:, None])[:, 0]
    total = response.sum(1).clamp_min(1e-300)
    turned = torch.complex((2 * angles).cos(), (2 * angles).sin())
    return Tuning(
        orientations=angles,
        response=response,
        frequency=cycles[best],
        preferred=angles[top],
        circular_variance=1 - (response.to(turned) @ turned).abs() / total,
        selectivity=(peak - across) / (peak + across).clamp_min(1e-300),
        half_width=_half_width(response, top) * math.pi / orientations,
    )


def _responses(atoms: Tensor, shape: Shape, angles: Tensor, cycles: Tensor) -> Tensor:
    """Returns (n, frequencies, orientations)."""
    x, y = positions(shape)
    across = angles.cos()[:, None] * x + angles.sin()[:, None] * y
    turn = 2 * math.pi * cycles[:, None, None] * across
    real, imaginary = (
        torch.einsum("np,fop->nfo", atoms, wave) for wave in (turn.cos(), turn.sin())
    )
    return (real.square() + imaginary.square()).sqrt()


def _half_width(response: Tensor, top: Tensor) -> Tensor:
    """Returns (n,) in steps of orientation, the mean of both sides, each found by a straight line.

    Steps to a side go on for half a turn at most, where the orthogonal orientation lies.
    """
    count = response.shape[1]
    level = response.amax(1) / math.sqrt(2)
    sides = []
    for direction in (1, -1):
        index = (top[:, None] + direction * torch.arange(count // 2 + 1)) % count
        along = response.gather(1, index)
        below = along < level[:, None]
        fell = below.any(1)
        first = below.double().argmax(1).clamp_min(1)
        high = along.gather(1, first[:, None] - 1)[:, 0]
        low = along.gather(1, first[:, None])[:, 0]
        part = (high - level) / (high - low).clamp_min(1e-300)
        sides.append(torch.where(fell, first - 1 + part, count / 2))
    return (sides[0] + sides[1]) / 2
