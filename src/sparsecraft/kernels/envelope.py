"""The root of a sum of clipped ramps: how much of each group a sparse envelope keeps.

The k-support norm, the sparse envelope and its grouped form (WGSEF) all come down to one number:
the eta at which sum_j clip(eta * slope_j - offset_j, 0, 1) equals k. The sum does not decrease, and
is linear between 2m breakpoints, those where a ramp leaves 0 and those where it reaches 1. Here the
breakpoints are sorted, many rows at once; the compiled way finds the root by selection, in linear
time. The two agree to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsecraft.kernels import backends


def ramp_root(slopes: Tensor, offsets: Tensor, keep: Tensor) -> Tensor:
    """Returns an eta of each row at which the clipped ramps sum to `keep`.

    It is unique unless the sum stays at `keep` for a while, over which no ramp moves. Where just
    `keep` slopes are positive, it is where the last of them reaches 1.

    Args:
        slopes: (rows, m), float64, not negative. A slope of zero never leaves 0.
        offsets: (rows, m) or (rows, 1), float64, not negative.
        keep: (rows,), int64, each at least 1.

    Returns:
        (rows,), float64; infinity where fewer than `keep` slopes are positive.

    Raises:
        ValueError: If the shapes or types do not fit.

    Example:
        >>> slopes = torch.tensor([[3.0, 2.0, 1.0]], dtype=torch.float64)
        >>> ramp_root(slopes, torch.zeros(1, 1, dtype=torch.float64), torch.tensor([2]))
        tensor([0.3333], dtype=torch.float64)
    """
    _check(slopes, offsets, keep)
    if backends.choose([slopes, offsets]) == "torch":
        return sorted_root(slopes, offsets, keep)
    from sparsecraft.kernels.envelope_numba import selected_root

    return selected_root(slopes, offsets, keep)


def clipped_ramps(slopes: Tensor, offsets: Tensor, root: Tensor) -> Tensor:
    """Returns clip(root * slopes - offsets, 0, 1); 1 for every positive slope at root infinity.

    Args:
        slopes: (rows, m).
        offsets: (rows, m) or (rows, 1).
        root: (rows,), from `ramp_root`.
    """
    # A finite stand-in: infinity times a zero slope would be NaN.
    finite = root.nan_to_num(posinf=0.0)[:, None]
    ramps = (finite * slopes).sub_(offsets).clamp_(0, 1)
    everything = torch.isinf(root)
    if bool(everything.any()):
        ramps[everything] = (slopes[everything] > 0).to(ramps.dtype)
    return ramps


def sorted_root(slopes: Tensor, offsets: Tensor, keep: Tensor) -> Tensor:
    """Returns the root of each row by sorting all breakpoints; see `ramp_root`."""
    offsets = offsets.expand_as(slopes)
    begins, ends = breakpoints(slopes, offsets)
    points = torch.cat([torch.zeros_like(ends[:, :1]), begins, ends], 1).sort(dim=1).values
    # Halving with the sum formed afresh each time: running sums over the sorted breakpoints would
    # lose the small slopes to cancellation where slopes differ by many orders.
    low = torch.zeros_like(keep)[:, None]
    high = torch.full_like(low, points.shape[1] - 1)
    for _ in range(points.shape[1].bit_length()):
        middle = (low + high) // 2
        sums = clipped_ramps(slopes, offsets, points.gather(1, middle)[:, 0]).sum(1, keepdim=True)
        reached = sums >= keep[:, None]
        high, low = middle.where(reached, high), low.where(reached, middle)
    lower, upper = points.gather(1, low), points.gather(1, high)
    inside = _root_between(slopes, offsets, begins, ends, lower, upper, keep[:, None])
    return _few(ends, keep).where(torch.isfinite(ends).sum(1) <= keep, inside[:, 0])


def breakpoints(slopes: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Returns where each ramp leaves 0 and where it reaches 1; infinity for a slope of zero."""
    ends = ((1 + offsets) / slopes).nan_to_num_(nan=torch.inf, posinf=torch.inf)
    return (offsets / slopes).where(torch.isfinite(ends), torch.inf), ends


def _root_between(
    slopes: Tensor,
    offsets: Tensor,
    begins: Tensor,
    ends: Tensor,
    low: Tensor,
    high: Tensor,
    keep: Tensor,
) -> Tensor:
    """Returns the root where the sum is linear from `low` to `high`: (rows, 1)."""
    rising = (begins <= low) & (ends > low)
    slope = slopes.where(rising, 0.0).sum(1, keepdim=True)
    offset = offsets.where(rising, 0.0).sum(1, keepdim=True)
    full = (ends <= low).sum(1, keepdim=True)
    root = ((keep - full + offset) / slope).clamp(min=low, max=high)
    return root.where(slope > 0, low)


def _few(ends: Tensor, keep: Tensor) -> Tensor:
    """Returns the root where at most `keep` ramps ever rise: all at 1, or never."""
    rising = torch.isfinite(ends)
    last = ends.where(rising, 0.0).amax(1)
    return last.where(rising.sum(1) == keep, torch.inf)


def _check(slopes: Tensor, offsets: Tensor, keep: Tensor) -> None:
    if slopes.dtype != torch.float64 or offsets.dtype != torch.float64:
        raise ValueError(
            f"slopes and offsets must be float64, not {slopes.dtype} and {offsets.dtype}: the "
            "root of float32 sums over many groups would lose its digits."
        )
    rows = slopes.shape[0] if slopes.dim() == 2 else -1
    if rows < 0 or offsets.shape not in (slopes.shape, (rows, 1)) or keep.shape != (rows,):
        raise ValueError(
            f"slopes {tuple(slopes.shape)}, offsets {tuple(offsets.shape)} and keep "
            f"{tuple(keep.shape)} do not fit: give (rows, m), (rows, m) or (rows, 1), and (rows,)."
        )
    if keep.dtype != torch.int64 or (rows and int(keep.min()) < 1):
        raise ValueError("keep must be int64, and at least 1 in each row.")
