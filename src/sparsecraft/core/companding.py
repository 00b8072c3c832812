"""Companding functions: odd, increasing maps from a trained value v to the weight w = f(v; a, b).

All share one interface, since the slope at zero decides what they are for. Where it is greater than
1 (arctan and its kin with a > b) small weights are driven away from zero and large ones are held
back: many medium weights, the weight compander of paper 30. Where it is 0 (power) small weights
stay small: the reparametrisation that promotes sparsity.

`a` scales the weight and `b` the trained value; both are positive, numbers or tensors that
broadcast, and everything is differentiable in v, a and b.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue, UnknownName

Positive = Tensor | float


class Companding(ABC):
    """A function w = f(v; a, b)."""

    @abstractmethod
    def value(self, v: Tensor, a: Positive, b: Positive) -> Tensor:
        """Returns f(v)."""

    @abstractmethod
    def derivative(self, v: Tensor, a: Positive, b: Positive) -> Tensor:
        """Returns df/dv at v."""

    @abstractmethod
    def inverse(self, w: Tensor, a: Positive, b: Positive) -> Tensor:
        """Returns the v with f(v) = w; w must lie within the bound."""

    @abstractmethod
    def bound(self, a: float) -> float:
        """Returns what |w| stays below; infinity where nothing bounds it."""

    @abstractmethod
    def unit_slope(self, a: float, b: float) -> float:
        """Returns the v > 0 where the slope is 1; 0 if there is none."""

    def slope(self, a: float, b: float) -> float:
        """Returns the slope at v = 0."""
        return a / b

    def fixed_point(self, a: float, b: float) -> float:
        """Returns the v > 0 with f(v) = v, where expansion and compression meet; 0 without one.

        For a slope at zero above 1, weights below it are expanded and those above compressed.
        """
        if self.slope(a, b) <= 1:
            return 0.0
        # f(v) - v rises up to the unit slope and falls from there on.
        low, high = self.unit_slope(a, b), self.unit_slope(a, b)
        while self._at(high, a, b) > high:
            high *= 2
        return _bisect(lambda v: self._at(v, a, b) - v, low, high)

    def _at(self, v: float, a: float, b: float) -> float:
        return float(self.value(torch.tensor(v, dtype=torch.float64), a, b))


@dataclass(frozen=True)
class Arctan(Companding):
    """a * arctan(v / b), below a * pi / 2: the function of paper 30.

    Example:
        >>> f = Arctan()
        >>> round(f.slope(0.5, 0.25), 2), round(f.bound(0.5), 4), f.unit_slope(0.5, 0.25)
        (2.0, 0.7854, 0.25)
    """

    def value(self, v: Tensor, a: Positive, b: Positive) -> Tensor:
        """Returns a * arctan(v / b)."""
        return a * torch.atan(v / b)

    def derivative(self, v: Tensor, a: Positive, b: Positive) -> Tensor:
        """Returns (a / b) / (1 + (v / b)^2)."""
        return (a / b) / (1 + (v / b).square())

    def inverse(self, w: Tensor, a: Positive, b: Positive) -> Tensor:
        """Returns b * tan(w / a)."""
        return b * torch.tan(w / a)

    def bound(self, a: float) -> float:
        """Returns a * pi / 2."""
        return a * math.pi / 2

    def unit_slope(self, a: float, b: float) -> float:
        """Returns b * sqrt(a / b - 1)."""
        return b * math.sqrt(max(0.0, a / b - 1))


@dataclass(frozen=True)
class Tanh(Companding):
    """a * tanh(v / b), below a."""

    def value(self, v: Tensor, a: Positive, b: Positive) -> Tensor:
        """Returns a * tanh(v / b)."""
        return a * torch.tanh(v / b)

    def derivative(self, v: Tensor, a: Positive, b: Positive) -> Tensor:
        """Returns (a / b) / cosh(v / b)^2."""
        return (a / b) * (1 - torch.tanh(v / b).square())

    def inverse(self, w: Tensor, a: Positive, b: Positive) -> Tensor:
        """Returns b * artanh(w / a)."""
        return b * torch.atanh(w / a)

    def bound(self, a: float) -> float:
        """Returns a."""
        return a

    def unit_slope(self, a: float, b: float) -> float:
        """Returns b * arcosh(sqrt(a / b))."""
        return b * math.acosh(math.sqrt(max(1.0, a / b)))


@dataclass(frozen=True)
class Softsign(Companding):
    """a * v / (b + |v|), below a."""

    def value(self, v: Tensor, a: Positive, b: Positive) -> Tensor:
        """Returns a * v / (b + |v|)."""
        return a * v / (b + v.abs())

    def derivative(self, v: Tensor, a: Positive, b: Positive) -> Tensor:
        """Returns a * b / (b + |v|)^2."""
        return a * b / (b + v.abs()).square()

    def inverse(self, w: Tensor, a: Positive, b: Positive) -> Tensor:
        """Returns b * w / (a - |w|)."""
        return b * w / (a - w.abs())

    def bound(self, a: float) -> float:
        """Returns a."""
        return a

    def unit_slope(self, a: float, b: float) -> float:
        """Returns sqrt(a * b) - b."""
        return max(0.0, math.sqrt(a * b) - b)

    def fixed_point(self, a: float, b: float) -> float:
        """Returns a - b, or 0 where a is not above b."""
        return max(0.0, a - b)


@dataclass(frozen=True)
class Algebraic(Companding):
    """a * v / sqrt(b^2 + v^2), below a."""

    def value(self, v: Tensor, a: Positive, b: Positive) -> Tensor:
        """Returns a * v / sqrt(b^2 + v^2)."""
        return a * (v / b) / torch.sqrt(1 + (v / b).square())

    def derivative(self, v: Tensor, a: Positive, b: Positive) -> Tensor:
        """Returns a * b^2 / (b^2 + v^2)^(3/2)."""
        return (a / b) / (1 + (v / b).square()).pow(1.5)

    def inverse(self, w: Tensor, a: Positive, b: Positive) -> Tensor:
        """Returns b * w / sqrt(a^2 - w^2)."""
        return b * (w / a) / torch.sqrt(1 - (w / a).square())

    def bound(self, a: float) -> float:
        """Returns a."""
        return a

    def unit_slope(self, a: float, b: float) -> float:
        """Returns b * sqrt((a / b)^(2/3) - 1)."""
        return b * math.sqrt(max(0.0, (a / b) ** (2 / 3) - 1))

    def fixed_point(self, a: float, b: float) -> float:
        """Returns sqrt(a^2 - b^2), or 0 where a is not above b."""
        return math.sqrt(max(0.0, a * a - b * b))


@dataclass(frozen=True)
class MuLaw(Companding):
    """a * sign(v) * log(1 + |v| / b), without bound; the law's mu is 1 / b."""

    def value(self, v: Tensor, a: Positive, b: Positive) -> Tensor:
        """Returns a * sign(v) * log(1 + |v| / b)."""
        sign = _sign(v)
        return a * sign * torch.log1p(sign * v / b)

    def derivative(self, v: Tensor, a: Positive, b: Positive) -> Tensor:
        """Returns a / (b + |v|)."""
        return a / (b + v.abs())

    def inverse(self, w: Tensor, a: Positive, b: Positive) -> Tensor:
        """Returns b * sign(w) * (exp(|w| / a) - 1)."""
        sign = _sign(w)
        return b * sign * torch.expm1(sign * w / a)

    def bound(self, a: float) -> float:
        """Returns infinity."""
        return math.inf

    def unit_slope(self, a: float, b: float) -> float:
        """Returns a - b."""
        return max(0.0, a - b)


@dataclass(frozen=True)
class Power(Companding):
    """a * sign(v) * |v / b|^p with p > 1, without bound: flat at zero, which promotes sparsity.

    Args:
        exponent: p.
    """

    exponent: float = 2.0

    def __post_init__(self) -> None:
        if not self.exponent > 1:
            raise InvalidValue(
                f"exponent={self.exponent!r} is not allowed: the power must be greater than 1"
            )

    def value(self, v: Tensor, a: Positive, b: Positive) -> Tensor:
        """Returns a * sign(v) * |v / b|^p."""
        sign = _sign(v)
        return a * sign * (sign * v / b).pow(self.exponent)

    def derivative(self, v: Tensor, a: Positive, b: Positive) -> Tensor:
        """Returns (a * p / b) * |v / b|^(p - 1)."""
        return (a * self.exponent / b) * (v / b).abs().pow(self.exponent - 1)

    def inverse(self, w: Tensor, a: Positive, b: Positive) -> Tensor:
        """Returns b * sign(w) * |w / a|^(1 / p)."""
        sign = _sign(w)
        return b * sign * (sign * w / a).pow(1 / self.exponent)

    def bound(self, a: float) -> float:
        """Returns infinity."""
        return math.inf

    def slope(self, a: float, b: float) -> float:
        """Returns 0."""
        return 0.0

    def unit_slope(self, a: float, b: float) -> float:
        """Returns b * (b / (a * p))^(1 / (p - 1))."""
        return b * (b / (a * self.exponent)) ** (1 / (self.exponent - 1))

    def fixed_point(self, a: float, b: float) -> float:
        """Returns b * (b / a)^(1 / (p - 1)); weights above it are expanded."""
        return b * (b / a) ** (1 / (self.exponent - 1))


COMPANDING: Mapping[str, Callable[[], Companding]] = {
    "arctan": Arctan,
    "tanh": Tanh,
    "softsign": Softsign,
    "algebraic": Algebraic,
    "mu-law": MuLaw,
    "power": Power,
}


def companding(name: str) -> Companding:
    """Returns the companding function of this name.

    Raises:
        UnknownName: With the closest names.
    """
    if name not in COMPANDING:
        raise UnknownName("companding function", name, COMPANDING)
    return COMPANDING[name]()


def _sign(x: Tensor) -> Tensor:
    """Returns 1 or -1, never 0, at which autograd would lose the slope at zero."""
    return torch.ones_like(x).copysign(x.detach())


def _bisect(function: Callable[[float], float], low: float, high: float) -> float:
    """Returns the root between a point above zero and one below, to the last bit."""
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return middle
        low, high = (middle, high) if function(middle) > 0 else (low, middle)
