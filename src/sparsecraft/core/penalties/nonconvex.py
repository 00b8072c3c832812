"""Penalties of single entries that leave large ones alone: L_q, log, CEL0, MCP and SCAD.

The L1 norm takes the same amount off every entry that it keeps. These penalties grow ever more
slowly, or stop growing, so that what is kept is kept at nearly its size. All follow the library's
convention, prox(x, step) = argmin 1/2 (z - x)^2 + step R(z); papers that leave out the 1/2 mean
half the strength (`without_half`).

Where two values attain the minimum, at a jump, the prox is the smaller one, zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.penalties.base import Penalty, check_step, check_strength
from sparsecraft.core.penalties.entries import soft_threshold

# Newton's method descends monotonically from |x| to the root, at least as fast as halving.
NEWTON_STEPS = 60


@dataclass(frozen=True, kw_only=True)
class Lq(Penalty):
    """R(x) = strength * sum |x|^q; the prox jumps from 0 to a value that is shrunk ever less.

    Args:
        strength: At least 0.
        q: In (0, 1]; closed forms are used at 1/2 and 2/3, Newton's method elsewhere.

    Example:
        >>> Lq(q=0.5).prox(torch.tensor([1.5, 4.0]), step=1.0)
        tensor([0.0000, 3.7415])

    Reference:
        Xu et al., 2012, IEEE TNNLS 23(7), eq. 17 (q = 1/2); Cao et al., 2013, J. Vis. Commun. Image
        R. 24(1), eq. 12 (q = 2/3).
    """

    strength: float = 1.0
    q: float = 0.5

    def __post_init__(self) -> None:
        check_strength(self.strength)
        if not (isinstance(self.q, int | float) and 0 < self.q <= 1):
            raise InvalidValue(
                f"q={self.q!r} is not allowed: give a number in (0, 1]; for q = 0 use L0"
            )

    def value(self, x: Tensor) -> Tensor:
        """Returns strength * sum |x|^q."""
        return self.strength * x.abs().pow(self.q).sum()

    def threshold(self, step: float) -> float:
        """Returns the largest |x| whose prox is 0."""
        weight, q = check_step(step) * self.strength, self.q
        if q == 1 or weight == 0:
            return weight
        # Below (2 (1 - q) weight)^(1 / (2 - q)) no value other than 0 is a minimum.
        return (2 - q) / (2 - 2 * q) * (2 * (1 - q) * weight) ** (1 / (2 - q))

    def prox(self, x: Tensor, step: float) -> Tensor:
        """Returns the entries beyond the threshold, shrunk, and 0 elsewhere."""
        weight, size = check_step(step) * self.strength, x.abs()
        if self.q == 1:
            return soft_threshold(x, weight)
        if weight == 0:
            return x.clone()
        kept = size > self.threshold(step)
        inside = size.where(kept, torch.full_like(x, 2 * self.threshold(step)))
        if self.q == 1 / 2:
            found = _half(inside, weight)
        elif self.q == 2 / 3:
            found = _two_thirds(inside, weight)
        else:
            found = _newton(inside, weight, self.q)
        return torch.copysign(found, x).masked_fill(~kept, 0)


@dataclass(frozen=True, kw_only=True)
class Log(Penalty):
    """R(x) = strength * sum log(1 + |x| / scale).

    Args:
        strength: At least 0.
        scale: Above 0; the smaller, the nearer to counting the entries.

    Example:
        >>> Log(scale=0.5).prox(torch.tensor([1.0, 4.0]), step=1.0)
        tensor([0.0000, 3.7656])

    Reference:
        Candes, Wakin and Boyd, 2008, J. Fourier Anal. Appl. 14(5), section 2.3.
    """

    strength: float = 1.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_strength(self.strength)
        _check_above("scale", self.scale, 0)

    def value(self, x: Tensor) -> Tensor:
        """Returns strength * sum log(1 + |x| / scale)."""
        return self.strength * torch.log1p(x.abs() / self.scale).sum()

    def threshold(self, step: float) -> float:
        """Returns the largest |x| whose prox is 0."""
        weight, scale = check_step(step) * self.strength, self.scale
        slope = weight / scale
        if weight <= scale * scale:  # the objective is convex, and leaves 0 where its slope does
            return slope
        low, high = 2 * math.sqrt(weight) - scale, slope
        while (middle := (low + high) / 2) not in (low, high):
            root = _log_root(middle, weight, scale)
            gain = root * (middle - root / 2) - weight * math.log1p(root / scale)
            low, high = (low, middle) if gain > 0 else (middle, high)
        return low

    def prox(self, x: Tensor, step: float) -> Tensor:
        """Returns the larger root of (z - |x|) (scale + z) = -step * strength, or 0."""
        weight, size = check_step(step) * self.strength, x.abs()
        kept = size > self.threshold(step)
        root = (size + self.scale).square() - 4 * weight
        found = (size - self.scale + root.clamp_min(0).sqrt()) / 2
        return torch.copysign(found, x).masked_fill(~kept, 0)


@dataclass(frozen=True, kw_only=True)
class MCP(Penalty):
    """R(x) = sum over entries of the integral of strength * max(1 - t / (reach strength), 0).

    The slope falls from `strength` at 0 to nothing at reach * strength. The prox is the firm
    threshold.

    Args:
        strength: At least 0.
        reach: Above 0; from a step of `reach` on the prox is the hard threshold.

    Example:
        >>> MCP(reach=2.0).prox(torch.tensor([1.0, 1.5, 3.0]), step=1.0)
        tensor([0., 1., 3.])

    Reference:
        Zhang, 2010, Annals of Statistics 38(2), eq. 2.2; Gao and Bruce, 1997, Statistica Sinica 7.
    """

    strength: float = 1.0
    reach: float = 3.0

    def __post_init__(self) -> None:
        check_strength(self.strength)
        _check_above("reach", self.reach, 0)

    def value(self, x: Tensor) -> Tensor:
        """Returns the sum of strength |x| - x^2 / (2 reach), of which the rise alone counts."""
        size = x.abs().clamp_max(self.reach * self.strength)
        return (self.strength * size - size.square() / (2 * self.reach)).sum()

    def threshold(self, step: float) -> float:
        """Returns the largest |x| whose prox is 0."""
        check_step(step)
        return self.strength * (step if step < self.reach else math.sqrt(step * self.reach))

    def prox(self, x: Tensor, step: float) -> Tensor:
        """Returns the firm threshold between step * strength and reach * strength."""
        return firm_threshold(x, check_step(step) * self.strength, self.reach * self.strength)


@dataclass(frozen=True, kw_only=True)
class SCAD(Penalty):
    """R has the slope `strength` up to |x| = strength, which then falls to 0 at reach * strength.

    Args:
        strength: At least 0.
        reach: Above 2.

    Example:
        >>> SCAD(reach=3.0).prox(torch.tensor([1.0, 1.5, 2.5, 4.0]), step=1.0)
        tensor([0.0000, 0.5000, 2.0000, 4.0000])

    Reference:
        Fan and Li, 2001, JASA 96(456), eqs. 2.7 and 2.8.
    """

    strength: float = 1.0
    reach: float = 3.7

    def __post_init__(self) -> None:
        check_strength(self.strength)
        _check_above("reach", self.reach, 2)

    def value(self, x: Tensor) -> Tensor:
        """Returns the sum over entries."""
        weight, reach = self.strength, self.reach
        size = x.abs().clamp_max(reach * weight)
        beyond = (size - weight).clamp_min(0)
        return (weight * size - beyond.square() / (2 * (reach - 1))).sum()

    def threshold(self, step: float) -> float:
        """Returns the largest |x| whose prox is 0."""
        check_step(step)
        return self.strength * min(step, math.sqrt(step * (self.reach + 1)))

    def prox(self, x: Tensor, step: float) -> Tensor:
        """Returns the soft threshold of small entries, large ones as they are, a bridge between."""
        weight, reach, size = self.strength, self.reach, x.abs()
        check_step(step)
        soft = soft_threshold(x, step * weight)
        if step < reach - 1:
            bridge = torch.copysign(
                ((reach - 1) * size - step * reach * weight) / (reach - 1 - step), x
            )
            near = torch.where(size <= (1 + step) * weight, soft, bridge)
            return torch.where(size <= reach * weight, near, x)
        # The bridge is concave, so that the prox jumps over it, from wherever that costs no more.
        jump = (reach + 1 + step) / 2 if step < reach + 1 else math.sqrt(step * (reach + 1))
        near = soft if step < reach + 1 else torch.zeros_like(x)
        return torch.where(size <= jump * weight, near, x)


@dataclass(frozen=True, kw_only=True)
class CEL0(Penalty):
    """R(x) = sum of strength - norm^2 / 2 (|x| - c)^2 where |x| <= c = sqrt(2 strength) / norm.

    The continuous exact relaxation of strength * L0 under a squared error: beside a dictionary
    whose columns have this norm, the sum of both has the global minimisers of L0 and fewer local
    ones. It is the MCP of strength norm * sqrt(2 strength) and reach 1 / norm^2.

    Args:
        strength: The weight of the L0 count that it stands for, at least 0.
        norm: Of the dictionary's columns, above 0; `for_columns` takes one for each.

    Example:
        >>> CEL0(strength=0.5).prox(torch.tensor([0.4, 0.75, 2.0]), step=0.5)
        tensor([0.0000, 0.5000, 2.0000])

    Reference:
        Soubies, Blanc-Feraud and Aubert, 2015, SIAM J. Imaging Sci. 8(3), eqs. 2.4 and 4.1;
        Rentzeperis et al., 2023, arXiv 2301.10002.
    """

    strength: float = 1.0
    norm: float = 1.0

    def __post_init__(self) -> None:
        check_strength(self.strength)
        _check_above("norm", self.norm, 0)

    def value(self, x: Tensor) -> Tensor:
        """Returns the sum over entries, strength for each that is at least c."""
        return _cel0(x, self.strength, self.norm)

    def threshold(self, step: float) -> float:
        """Returns the largest |x| whose prox is 0."""
        check_step(step)
        low = math.sqrt(2 * self.strength) * self.norm * step
        # From step * norm^2 = 1 on, the hard threshold.
        return min(low, math.sqrt(2 * self.strength * step))

    def prox(self, x: Tensor, step: float) -> Tensor:
        """Returns the firm threshold between step * norm^2 * c and c, the hard one if they cross.

        The gradient's step multiplies the whole penalty, so the strength itself enters, not
        step * strength.
        """
        reach = math.sqrt(2 * self.strength) / self.norm
        return firm_threshold(x, check_step(step) * self.norm**2 * reach, reach)

    def for_columns(self, norms: Tensor) -> Penalty:
        """Returns the same penalty of rows whose entries belong to columns of these norms.

        Args:
            norms: (columns,), above 0.
        """
        if bool((norms == self.norm).all()):
            return self
        return _ColumnCEL0(self.strength, norms)


@dataclass(frozen=True, eq=False)
class _ColumnCEL0(Penalty):
    """CEL0 of (rows, columns), with a norm for each column."""

    strength: float
    norms: Tensor

    def value(self, x: Tensor) -> Tensor:
        return _cel0(x, self.strength, self.norms)

    def prox(self, x: Tensor, step: float) -> Tensor:
        reach = math.sqrt(2 * self.strength) / self.norms
        return firm_threshold(x, check_step(step) * self.norms.square() * reach, reach)


def firm_threshold(x: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """Returns 0 where |x| <= low, x where |x| >= high, and a straight line between.

    Where high does not exceed low there is no line, and the two meet at the hard threshold
    sqrt(low * high), at which both values of the underlying penalty cost the same.

    Args:
        x: Any floating tensor.
        low: At least 0; a number or a tensor that broadcasts to x.
        high: At least 0, likewise.

    Example:
        >>> firm_threshold(torch.tensor([1.0, -1.5, 3.0]), 1.0, 2.0)
        tensor([ 0., -1.,  3.])

    Reference:
        Gao and Bruce, 1997, Statistica Sinica 7, eq. 3.
    """
    size = x.abs()
    low, high = (torch.as_tensor(each, dtype=x.dtype, device=x.device) for each in (low, high))
    crossed = high <= low
    width = torch.where(crossed, torch.ones_like(high), high - low)
    line = torch.minimum(size, (size - low).clamp_min(0) * high / width)
    hard = size.masked_fill(size <= (low * high).sqrt(), 0)
    return torch.copysign(torch.where(crossed, hard, line), x)


def _cel0(x: Tensor, strength: float, norm: float | Tensor) -> Tensor:
    short = (math.sqrt(2 * strength) - norm * x.abs()).clamp_min(0)
    return (strength - short.square() / 2).sum()


def _half(size: Tensor, weight: float) -> Tensor:
    """Returns the larger root of z - size + weight / (2 sqrt(z)) = 0, a cubic in sqrt(z)."""
    angle = torch.arccos((weight / 4 * (size / 3).pow(-1.5)).clamp_max(1))
    return 2 / 3 * size * (1 + torch.cos(2 / 3 * (math.pi - angle)))


def _two_thirds(size: Tensor, weight: float) -> Tensor:
    """Returns the larger root of z - size + 2/3 weight z^(-1/3) = 0, a quartic in z^(1/3)."""
    whole = 2 * weight
    angle = torch.arccosh((27 / 16 * size.square() * whole**-1.5).clamp_min(1))
    root = 2 / math.sqrt(3) * whole**0.25 * torch.cosh(angle / 3).sqrt()
    return ((root + (2 * size / root - root.square()).clamp_min(0).sqrt()) / 2).pow(3)


def _newton(size: Tensor, weight: float, q: float) -> Tensor:
    """Returns the larger root of z - size + weight q z^(q - 1) = 0, a convex function of z."""
    z = size
    for _ in range(NEWTON_STEPS):
        power = weight * q * z.pow(q - 1)
        following = z - (z - size + power) / (1 + (q - 1) * power / z)
        if bool((following >= z).all()):
            break
        z = torch.minimum(z, following)
    return z


def _log_root(size: float, weight: float, scale: float) -> float:
    return (size - scale + math.sqrt(max((size + scale) ** 2 - 4 * weight, 0.0))) / 2


def _check_above(name: str, value: float, bound: float) -> None:
    if not (isinstance(value, int | float) and bound < value < math.inf):
        raise InvalidValue(f"{name}={value!r} is not allowed: give a number above {bound:g}")
