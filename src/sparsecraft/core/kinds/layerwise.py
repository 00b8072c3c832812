"""Methods that prune one matrix at a time, knowing only it and its input."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sparsecraft.core.allocation import Allocation, Uniform
from sparsecraft.core.errors import InvalidValue, MissingStatistic
from sparsecraft.core.kinds.base import Pruned, WeightMethod
from sparsecraft.core.seeds import generator
from sparsecraft.core.statistics import Statistic

Role = Literal["attention", "feed-forward", "expert"]


@dataclass(frozen=True)
class Layer:
    """What a Layerwise method knows of the layer it prunes.

    Args:
        name: Target name.
        density: Fraction of this layer to keep; the allocation's share.
        seed: The run's seed.
        statistics: The statistics the method declared, of this layer's input.
        role: What it is in its block, where the method asks; None outside the blocks.
    """

    name: str
    density: float
    seed: int = 0
    statistics: Mapping[type[Statistic], Tensor] = field(default_factory=dict)
    role: Role | None = None

    def __getitem__(self, statistic: type[Statistic]) -> Tensor:
        """Returns the value of a declared statistic.

        Raises:
            MissingStatistic: If it was not gathered.
        """
        if statistic not in self.statistics:
            raise MissingStatistic(
                f"{self.name}: no {statistic.__name__} of its input was gathered. "
                "Give calibration data (calibration=..., --calibration text.txt)."
            )
        return self.statistics[statistic]

    def generator(self) -> torch.Generator:
        """Returns this layer's own random stream."""
        return generator(self.seed, "layer", self.name)


@dataclass(frozen=True, kw_only=True)
class Layerwise(WeightMethod):
    """Prunes one matrix at a time, knowing only that matrix and its input.

    Args:
        allocation: How the budget is shared between the layers.
    """

    allocation: Allocation = field(default_factory=Uniform)
    statistics: ClassVar[tuple[type[Statistic], ...]] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern.fixed_density is not None and self.allocation != Uniform():
            raise InvalidValue(
                f"allocation {type(self.allocation).__name__} contradicts the pattern "
                f"{self.pattern}, which fixes every layer's density. Use the uniform allocation."
            )

    @property
    def needs_roles(self) -> bool:
        """Whether the method asks for the role of a layer; it is found by tracing the model."""
        return False

    def check_layers(self, roles: Mapping[str, Role | None]) -> None:
        """Raises NoMatch if a setting names layers and these have none of them.

        Args:
            roles: Every target's name, and its role where the method asks for roles.
        """

    @abstractmethod
    def prune(self, weight: Tensor, layer: Layer) -> Pruned:
        """Returns the pruned matrix.

        Args:
            weight: (outputs, inputs), float32.
            layer: Name, density, seed and statistics.
        """
