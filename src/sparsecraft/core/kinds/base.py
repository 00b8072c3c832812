"""What every method is, and what pruning a matrix gives."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from sparsecraft.core.errors import InvalidValue, check_sparsity
from sparsecraft.core.mask import masked
from sparsecraft.core.patterns import Pattern, Unstructured

if TYPE_CHECKING:
    from sparsecraft.core.catalog import MethodInfo


DEFAULT_SPARSITY = 0.5


Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Pruned:
    """A weight after pruning.

    Args:
        weight: (outputs, inputs), zero wherever the mask is False.
        mask: bool (outputs, inputs), True where kept.
        facts: Anything worth a number in the report of this layer, by what it is.
    """

    weight: Tensor
    mask: Tensor
    facts: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def keeping(
        cls, weight: Tensor, mask: Tensor, facts: Mapping[str, float] | None = None
    ) -> Pruned:
        """Returns the weight with everything outside the mask set to positive zero."""
        return cls(masked(weight, mask), mask, facts or {})


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Base of every method; `info` is what it registered in the catalog."""

    info: ClassVar[MethodInfo]


@dataclass(frozen=True, kw_only=True)
class WeightMethod(Method):
    """A method that leaves a fraction of the weights.

    Args:
        sparsity: Fraction of the targeted weights set to zero, in [0, 1). An N:M pattern implies
            it; otherwise 0.5 unless given.
        pattern: Which shapes of zeros are allowed.
    """

    sparsity: float | None = None
    pattern: Pattern = field(default_factory=Unstructured)

    def __post_init__(self) -> None:
        fixed = self.pattern.fixed_density
        if self.sparsity is None:
            return
        check_sparsity(self.sparsity)
        if fixed is not None and abs(1 - self.sparsity - fixed) > 1e-9:
            raise InvalidValue(
                f"sparsity={self.sparsity:g} contradicts the pattern {self.pattern}, which implies "
                f"{1 - fixed:g}. Leave the sparsity out, or give sparsity={1 - fixed:g}."
            )

    @property
    def density(self) -> float:
        """Fraction of the targeted weights that is kept."""
        fixed = self.pattern.fixed_density
        if fixed is not None:
            return fixed
        return 1.0 - (DEFAULT_SPARSITY if self.sparsity is None else self.sparsity)

    @property
    def deterministic(self) -> bool:
        """Whether the seed changes nothing but the calibration data drawn with it."""
        return self.info.taxonomy.criterion != "random"
