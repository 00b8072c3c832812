"""What SET and RigL have in common: at intervals, drop the smallest weights and grow others.

The number of weights stays what it was from the first step to the last. With time the mask visits
more and more of the weights; Liu et al. (2021) find that what such methods gain comes with the
fraction ever active, which the report of the training gives as `itop`.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

from torch import Tensor

from sparsecraft.core.allocation import ERK, Allocation
from sparsecraft.core.drop_grow import ANNEALS, Anneal, drop_fraction, dropped, grown
from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.kinds import (
    Clock,
    InTraining,
    Layers,
    Tensors,
    TrainedLayer,
    WeightMethod,
)
from sparsecraft.core.patterns import Unstructured
from sparsecraft.core.scores import check_finite
from sparsecraft.methods.weights.random import Random

LONGEST_INTERVAL = 100
SHARE_OF_RUN = 20


@dataclass(frozen=True, kw_only=True)
class PruneAndGrow(InTraining, WeightMethod):
    """Starts with a random mask; every `every` steps the smallest weights give way to others.

    Args:
        allocation: How the budget is shared between the layers.
        drop: Fraction of a layer's weights that is dropped at the first update, in (0, 1).
        every: Optimiser steps from one update to the next. None means 100, or a twentieth of the
            training where that is less.
        begin_at: Fraction of the training after which updates begin.
        end_at: Fraction of the training before which they end.
        anneal: How the drop fraction falls from `begin_at` to `end_at`.
        anneal_rate: Of the exponential anneal.
    """

    allocation: Allocation = field(default_factory=ERK)
    drop: float = 0.3
    every: int | None = None
    begin_at: float = 0.0
    end_at: float = 0.75
    anneal: Anneal = "cosine"
    anneal_rate: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern != Unstructured():
            raise InvalidValue(
                f"{self.info.name} drops and grows single weights, which breaks the pattern "
                f"{self.pattern}. Use the unstructured pattern; for N:M see mdgf, sdgf and sr_ste."
            )
        if not 0 < self.drop < 1:
            raise InvalidValue(f"drop={self.drop} is not allowed: it is a fraction in (0, 1)")
        if self.every is not None and self.every < 1:
            raise InvalidValue(f"every={self.every}: give at least 1 step between two updates")
        if not 0 <= self.begin_at < self.end_at <= 1:
            raise InvalidValue(
                f"updates from {self.begin_at:g} to {self.end_at:g} of the training: give "
                "fractions with 0 <= begin_at < end_at <= 1"
            )
        if self.anneal not in ANNEALS:
            raise UnknownName("anneal", self.anneal, ANNEALS)

    @abstractmethod
    def scores(
        self, layer: TrainedLayer, gradients: Tensors, weight: Tensor, clock: Clock
    ) -> Tensor:
        """Returns which weights to grow, the highest first; at least 0, of the layer's shape."""

    def start(self) -> WeightMethod:
        """Returns random pruning with these densities."""
        return Random(sparsity=1 - self.density, allocation=self.allocation)

    def interval(self, total: int) -> int:
        """Returns the steps from one update to the next in a training of `total` steps."""
        if self.every is not None:
            return self.every
        return max(1, min(LONGEST_INTERVAL, total // SHARE_OF_RUN))

    def due(self, clock: Clock) -> bool:
        """Returns whether the mask changes at the end of this step: at t0 < t < t_end."""
        first, last = self.begin_at * clock.total, self.end_at * clock.total
        return first < clock.done < last and clock.done % self.interval(clock.total) == 0

    def fraction(self, clock: Clock) -> float:
        """Returns which fraction of the active weights this update drops."""
        first, last = self.begin_at * clock.total, self.end_at * clock.total
        progress = (clock.done - first) / (last - first)
        return drop_fraction(progress, self.drop, self.anneal, self.anneal_rate)

    def begin(self, weight: Tensor, layer: TrainedLayer, clock: Clock) -> Tensor:
        """Returns the weight, after checking that the mask will change at all.

        Raises:
            InvalidValue: If the training is too short for a single update.
        """
        every = self.interval(clock.total)
        if not any(
            self.due(Clock(done - 1, clock.total)) for done in range(every, clock.total + 1, every)
        ):
            raise InvalidValue(
                f"every={every}: no update would fall between {self.begin_at:g} and "
                f"{self.end_at:g} of {clock.total} steps, so that the mask would never change. "
                'Give a smaller `every`, or use the method "static".'
            )
        return weight

    def after_step_due(self, clock: Clock) -> bool:
        """Returns whether the mask changes at the end of this step."""
        return self.due(clock)

    def after_step(self, weight: Tensor, layer: TrainedLayer, clock: Clock) -> Tensor:
        """Returns the weight, without what this step drops where an update is due.

        Dropped weights lose their values here, so that one grown again begins at zero like the
        others.
        """
        if layer.mask is None or not self.due(clock):
            return weight
        check_finite(weight, f"{layer.name}: the weight")
        return weight.masked_fill(~dropped(weight, layer.mask, self.fraction(clock)), 0)

    def update_masks(
        self, weights: Tensors, gradients: Tensors, layers: Layers, clock: Clock
    ) -> dict[str, Tensor]:
        """Returns the masks without the smallest weights and with as many grown."""
        masks = {}
        for name, layer in layers.items():
            if layer.mask is None:
                continue
            keep = dropped(weights[name], layer.mask, self.fraction(clock))
            scores = self.scores(layer, gradients, weights[name], clock)
            masks[name] = grown(keep, scores, int(layer.mask.sum()))
        return masks
