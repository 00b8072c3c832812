"""How many weights each layer keeps, given how many all of them keep together.

An allocation maps layer shapes and a global density to a density for each layer; the budget
sum(d_l N_l) = d sum(N_l) holds to floating-point accuracy. Shapes are (out, in, *kernel).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from sparsecraft.core.errors import BudgetError, InvalidValue, UnknownName, check_density
from sparsecraft.core.mask import Mask

Shapes = Mapping[str, tuple[int, ...]]


class Allocation(ABC):
    """Gives each layer its share of the budget."""

    @abstractmethod
    def __call__(self, shapes: Shapes, density: float) -> dict[str, float]:
        """Returns the density of each layer, in (0, 1].

        Args:
            shapes: Layer name to shape, (out, in) or (out, in, *kernel), in model order.
            density: Fraction of all these weights that is kept, in (0, 1].

        Raises:
            BudgetError: If the budget cannot be met, naming the layers in the way.
        """


@dataclass(frozen=True)
class Uniform(Allocation):
    """Every layer keeps the same fraction.

    Example:
        >>> Uniform()({"a": (4, 4), "b": (8, 4)}, 0.5)
        {'a': 0.5, 'b': 0.5}
    """

    def __call__(self, shapes: Shapes, density: float) -> dict[str, float]:
        """Returns the global density for every layer."""
        check_density(density)
        return dict.fromkeys(_checked(shapes), density)


@dataclass(frozen=True)
class UniformPlus(Allocation):
    """First layer dense, last at least `last_density` dense, the rest share one density.

    Args:
        first: Name of the layer kept dense; by default the first one.
        last: Name of the classifier; by default the last one.
        last_density: The least that the classifier keeps.
        exact_budget: Whether the rest is chosen so that the budget holds. False gives what the
            official code of Liu et al. does, which misses the budget a little.

    Reference:
        Gale, Elsen, Hooker, 2019, arXiv 1902.09574; Liu et al., 2022, arXiv 2202.02643.
    """

    first: str | None = None
    last: str | None = None
    last_density: float = 0.2
    exact_budget: bool = True

    def __call__(self, shapes: Shapes, density: float) -> dict[str, float]:
        """Returns the densities; see the class."""
        check_density(density)
        names = list(_checked(shapes))
        first = _known(self.first or names[0], names)
        last = _known(self.last or names[-1], names)
        sizes = {name: math.prod(shapes[name]) for name in names}
        if first == last:
            raise BudgetError("uniform+ needs at least two layers: the first and the last differ")
        fixed = {first: 1.0, last: max(self.last_density, density)}
        total = sum(sizes.values())
        left = density * total - sum(sizes[name] * d for name, d in fixed.items())
        others = total - sum(sizes[name] for name in fixed)
        rest = left / others if others else 0.0
        if not self.exact_budget:
            rest = density if density >= self.last_density else left / total
        if (others and rest <= 0) or (not others and abs(left) > 1e-9 * total):
            raise BudgetError(
                f"uniform+ at density {density:g}: {first} (dense) and {last} "
                f"({fixed[last]:g}) alone exceed the budget. Use a higher density, erk, or a "
                "smaller last_density."
            )
        return {name: fixed.get(name, min(1.0, rest)) for name in names}


@dataclass(frozen=True)
class ER(Allocation):
    """Density in proportion to (out + in) / (out * in): Erdos-Renyi.

    Args:
        power: Exponent of the proportion.

    Reference:
        Mocanu et al., 2018, arXiv 1707.04780.
    """

    power: float = 1.0

    def __call__(self, shapes: Shapes, density: float) -> dict[str, float]:
        """Returns the densities; kernel dimensions do not count in the proportion."""
        raw = {n: (sum(s[:2]) / math.prod(s[:2])) ** self.power for n, s in shapes.items()}
        return _proportional(_checked(shapes), raw, density)


@dataclass(frozen=True)
class ERK(Allocation):
    """Density in proportion to sum(shape) / prod(shape): Erdos-Renyi-Kernel.

    A layer whose share would exceed 1 is kept dense and the rest is solved again, so that the
    budget holds exactly.

    Args:
        power: Exponent of the proportion.

    Example:
        >>> d = ERK()({"a": (300, 784), "b": (100, 300), "c": (10, 100)}, 0.1)
        >>> round(sum(d[n] * k for n, k in zip("abc", (235200, 30000, 1000))) / 266200, 12)
        0.1

    Reference:
        Evci et al., 2020, arXiv 1911.11134.
    """

    power: float = 1.0

    def __call__(self, shapes: Shapes, density: float) -> dict[str, float]:
        """Returns the densities; see the class."""
        raw = {name: (sum(s) / math.prod(s)) ** self.power for name, s in shapes.items()}
        return _proportional(_checked(shapes), raw, density)


@dataclass(frozen=True)
class ERKPlus(Allocation):
    """The last layer at a fixed density, ERK on the others.

    Args:
        last: Name of the classifier; by default the last one.
        last_density: What it keeps.
        power: Exponent of ERK.

    Reference:
        Liu et al., 2022, arXiv 2202.02643 (the ImageNet recipe).
    """

    last: str | None = None
    last_density: float = 1.0
    power: float = 1.0

    def __call__(self, shapes: Shapes, density: float) -> dict[str, float]:
        """Returns the densities; see the class."""
        check_density(density)
        check_density(self.last_density)
        names = list(_checked(shapes))
        last = _known(self.last or names[-1], names)
        sizes = {name: math.prod(shapes[name]) for name in names}
        others = {name: shape for name, shape in shapes.items() if name != last}
        total = sum(sizes.values())
        left = density * total - self.last_density * sizes[last]
        if not others or left <= 0:
            raise BudgetError(
                f"erk+ at density {density:g}: {last} at {self.last_density:g} alone holds "
                f"{self.last_density * sizes[last]:.0f} of the {density * total:.0f} weights "
                "allowed. Use a higher density or a smaller last_density."
            )
        inner = ERK(self.power)(others, min(1.0, left / (total - sizes[last])))
        return {name: inner.get(name, self.last_density) for name in names}


@dataclass(frozen=True)
class Given(Allocation):
    """Densities given by name, for example those of another method's mask.

    Args:
        densities: Layer name to density. The global density is what follows from them.
    """

    densities: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_mask(cls, mask: Mask) -> Given:
        """Returns the allocation that keeps in each layer what the mask keeps there."""
        return cls(mask.densities)

    def __call__(self, shapes: Shapes, density: float) -> dict[str, float]:
        """Returns the given densities.

        Raises:
            BudgetError: If a layer is missing or the densities do not add up to `density`.
        """
        missing = [name for name in _checked(shapes) if name not in self.densities]
        if missing:
            raise BudgetError(f"no density was given for {missing[:5]}")
        total = sum(math.prod(s) for s in shapes.values())
        asked = density * total
        got = sum(self.densities[name] * math.prod(s) for name, s in shapes.items())
        if abs(got - asked) > max(0.5 * len(shapes), 1e-6 * total):
            raise BudgetError(
                f"the given densities keep {got / total:.4f} of the weights, but "
                f"{density:.4f} was asked. Give sparsity={1 - got / total:.4f}, or rescale them."
            )
        return {name: float(self.densities[name]) for name in shapes}


ALLOCATIONS: Mapping[str, type[Allocation]] = {
    "uniform": Uniform,
    "uniform+": UniformPlus,
    "er": ER,
    "erk": ERK,
    "erk+": ERKPlus,
}


def parse_allocation(text: str | Allocation) -> Allocation:
    """Returns the allocation of this name: uniform, uniform+, er, erk or erk+."""
    if isinstance(text, Allocation):
        return text
    if text not in ALLOCATIONS:
        raise UnknownName("allocation", text, ALLOCATIONS)
    return ALLOCATIONS[text]()


def _proportional(shapes: Shapes, raw: Mapping[str, float], density: float) -> dict[str, float]:
    """Returns min(1, eps * raw), with eps such that the budget holds."""
    check_density(density)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    dense: set[str] = set()
    while len(dense) < len(sizes):
        budget = density * sum(sizes.values()) - sum(sizes[name] for name in dense)
        weight = sum(raw[name] * sizes[name] for name in sizes if name not in dense)
        eps = budget / weight
        largest = max(raw[name] for name in sizes if name not in dense)
        if eps * largest <= 1.0:
            return {name: 1.0 if name in dense else eps * raw[name] for name in sizes}
        # All layers that share the largest value leave together, as in the official code.
        dense |= {name for name in sizes if name not in dense and raw[name] == largest}
    return dict.fromkeys(sizes, 1.0)


def _checked(shapes: Shapes) -> Shapes:
    if not shapes:
        raise BudgetError("there are no layers to share the budget")
    for name, shape in shapes.items():
        if len(shape) < 2 or math.prod(shape) == 0:
            raise InvalidValue(f"{name}: shape {shape} is not that of a weight with 2 or more axes")
    return shapes


def _known(name: str, names: list[str]) -> str:
    if name not in names:
        raise UnknownName("layer", name, names)
    return name
