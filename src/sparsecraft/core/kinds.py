"""The kinds of method: what a method says, so that its host can do the rest.

A method is a frozen description. Hooks, devices, ranks, files and progress belong to the host in
`sparsecraft.model`; a method sees tensors and the few things named here. Weights are always shown
as matrices (outputs, inputs), by target name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor

from sparsecraft.core.allocation import Allocation, Uniform
from sparsecraft.core.errors import InvalidValue, MissingStatistic, check_sparsity
from sparsecraft.core.mask import Mask
from sparsecraft.core.patterns import Pattern, Unstructured
from sparsecraft.core.seeds import generator
from sparsecraft.core.statistics import Statistic

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
    """

    weight: Tensor
    mask: Tensor

    @classmethod
    def keeping(cls, weight: Tensor, mask: Tensor) -> Pruned:
        """Returns the weight with everything outside the mask set to positive zero."""
        return cls(weight.masked_fill(~mask, 0), mask)


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


@dataclass(frozen=True)
class Layer:
    """What a Layerwise method knows of the layer it prunes.

    Args:
        name: Target name.
        density: Fraction of this layer to keep; the allocation's share.
        seed: The run's seed.
        statistics: The statistics the method declared, of this layer's input.
    """

    name: str
    density: float
    seed: int = 0
    statistics: Mapping[type[Statistic], Tensor] = field(default_factory=dict)

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

    @abstractmethod
    def prune(self, weight: Tensor, layer: Layer) -> Pruned:
        """Returns the pruned matrix.

        Args:
            weight: (outputs, inputs), float32.
            layer: Name, density, seed and statistics.
        """


class ModelContext(Protocol):
    """What a ModelWide method may ask of the model; the user's model stays untouched."""

    seed: int

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Layer shapes (out, in, *kernel) by target name, in model order."""

    def generator(self, *labels: object) -> torch.Generator:
        """Returns the random stream of these labels."""

    def batches(self) -> Sequence[Batch]:
        """Returns the calibration batches; raises MissingStatistic if there are none."""

    def loss(
        self, weights: Mapping[str, Tensor], batch: Batch, *, temperature: float = 1
    ) -> Tensor:
        """Returns the loss with these weights in place of the model's, differentiable in them.

        Args:
            weights: Matrices by target name.
            batch: Inputs and labels.
            temperature: Divides the logits before the loss.
        """

    def flow(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Returns the summed output for an input of ones, all other parameters made positive."""


@dataclass(frozen=True, kw_only=True)
class ModelWide(WeightMethod):
    """Prunes all matrices together: scores are compared across layers."""

    needs_batches: ClassVar[bool] = False

    @abstractmethod
    def prune(self, weights: Mapping[str, Tensor], context: ModelContext) -> dict[str, Pruned]:
        """Returns every matrix pruned.

        Args:
            weights: (outputs, inputs) by target name, in model order.
            context: Losses and gradients on a copy of the model.
        """

    def globally(
        self, weights: Mapping[str, Tensor], scores: Mapping[str, Tensor]
    ) -> dict[str, Pruned]:
        """Returns the weights pruned to the highest scores over all of them together."""
        masks = self.pattern.global_masks(list(scores.values()), self.density)
        return {
            name: Pruned.keeping(weights[name], mask)
            for name, mask in zip(scores, masks, strict=True)
        }


@dataclass(frozen=True, kw_only=True)
class InTraining(Method):
    """Makes weights sparse while they train; overrides only the hooks it has.

    The host keeps the clock (optimiser steps), the masks by name, the optimiser's moments and the
    checkpoints. `masked_weights` says what becomes of masked weights: "frozen" ones stay zero and
    lose their moments until `update_mask` revives them, "live" ones train on and are only zero in
    what is exported.
    """

    masked_weights: ClassVar[str] = "frozen"
    captures: ClassVar[tuple[str, ...]] = ()

    def initial_mask(self, weights: Mapping[str, Tensor], context: ModelContext) -> Mask | None:
        """Returns the mask to begin with, or None for a dense start."""
        return None

    def forward(self, name: str, weight: Tensor, mask: Tensor | None, step: int) -> Tensor:
        """Returns what the layer computes with in place of its weight."""
        return weight

    def loss(self, weights: Mapping[str, Tensor], step: int) -> Tensor | None:
        """Returns what is added to the task's loss, or None."""
        return None

    def edit_gradient(self, name: str, weight: Tensor, gradient: Tensor, step: int) -> Tensor:
        """Returns the gradient that the optimiser shall see."""
        return gradient

    def after_step(self, name: str, weight: Tensor, step: int) -> Tensor:
        """Returns the weight after the optimiser's step, for example its prox."""
        return weight

    def update_mask(
        self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], mask: Mask, step: int
    ) -> Mask | None:
        """Returns a new mask, or None where this step changes none."""
        return None


@dataclass(frozen=True, kw_only=True)
class Gate(Method):
    """Makes the input of a layer sparse at inference, differently for each token."""

    @abstractmethod
    def select(self, name: str, x: Tensor, statistics: Mapping[type[Statistic], Tensor]) -> Tensor:
        """Returns a bool tensor like x, True for the inputs that are computed with."""


class Train(Protocol):
    """The caller's training: methods never know the task."""

    def __call__(self, model: Any, mask: Mask | None = None, *, branch: str) -> None:
        """Trains the model in place; entries that the mask prunes stay zero.

        Args:
            model: A torch module.
            mask: What to hold at zero, by parameter name.
            branch: Name of this training, for seeds, progress and resuming.
        """


@dataclass(frozen=True, kw_only=True)
class Recipe(Method):
    """Several trainings, prunings and surgeries in a row."""

    @abstractmethod
    def run(self, model: Any, train: Train) -> Any:
        """Returns the outcome; see the method for its type."""


@dataclass(frozen=True, kw_only=True)
class Evaluation(Method):
    """Measures instead of changing."""

    @abstractmethod
    def measure(self, model: Any, data: Iterable[Batch]) -> dict[str, float]:
        """Returns the measured figures by name."""
