"""Proximal training of groups: what WGSEF, group lasso and group hard thresholding share.

After the optimiser's step every group is scaled by the prox of a penalty, with the learning rate
times the strength as its step; at the end exactly k groups are kept. The half-space stage of HSPG
(Chen et al., 2020) can take the place of the prox late in the training: it steps along the
penalty's gradient, sets groups to zero that would turn by more than a right angle, and never lets a
zero group return.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import SGD

from sparsecraft.core.errors import InvalidValue, UnknownName, check_sparsity
from sparsecraft.core.kinds import DEFAULT_SPARSITY, Clock, InTraining, Tensors
from sparsecraft.core.mask import count
from sparsecraft.core.penalties import check_count, check_strength
from sparsecraft.kernels.selection import keep_largest
from sparsecraft.model.group_builders import GROUP_KINDS, GroupKind, find_groups
from sparsecraft.model.groups import GroupFamily
from sparsecraft.model.targets import find_targets

STAGES = ("prox", "half_space")


@dataclass(frozen=True)
class Pool:
    """Groups among which k are kept: those of one layer, or of all layers together.

    Args:
        families: The layers.
        k: How many of their groups stay.
    """

    families: tuple[GroupFamily, ...]
    k: int

    @property
    def sizes(self) -> Tensor:
        """Entries of each group: (groups,), float64."""
        return torch.cat([family.sizes for family in self.families])

    def norms(self, parameters: Tensors) -> Tensor:
        """Returns the norm of each group: (groups,), float64."""
        return torch.cat([family.norms(parameters) for family in self.families])

    def inner(self, parameters: Tensors, others: Tensors) -> Tensor:
        """Returns the inner product of each group with the same group of others: (groups,)."""
        return torch.cat([family.inner(parameters, others) for family in self.families])

    def scale_(self, parameters: Tensors, factors: Tensor) -> None:
        """Multiplies each group by its factor, in place."""
        for family, part in self._split(factors):
            family.scale_(parameters, part)

    def add_(self, parameters: Tensors, others: Tensors, factors: Tensor) -> None:
        """Adds to each group its factor times the same group of others, in place."""
        for family, part in self._split(factors):
            family.add_(parameters, others, part)

    def entries(self, chosen: Tensor) -> list[dict[str, Tensor]]:
        """Returns the entries of the chosen groups, for each family by parameter name."""
        return [family.entries(part) for family, part in self._split(chosen)]

    def _split(self, values: Tensor) -> list[tuple[GroupFamily, Tensor]]:
        parts = values.split([family.size for family in self.families])
        return list(zip(self.families, parts, strict=True))


@dataclass(frozen=True, kw_only=True)
class GroupMethod(InTraining):
    """Base of the methods that keep k groups.

    Args:
        sparsity: Fraction of each layer's groups that is zero at the end, in [0, 1); 0.5 unless k
            is given. At least one group stays.
        k: How many groups stay, in each layer or in all, in place of the sparsity.
        scope: "layer" keeps k (or the fraction) in each layer, "global" over all layers.
        groups: What a group is: "neuron", "filter", "channel", "filter_shape", "kernel", "branch"
            or "unstructured"; see `find_groups`.
        outgoing: Whether the columns that read a neuron or filter belong to its group.
        layers: Which layers, see `find_targets`; None for the default.
    """

    masked_weights = "live"
    sparsity: float | None = None
    k: int | None = None
    scope: Literal["layer", "global"] = "layer"
    groups: GroupKind = "neuron"
    outgoing: bool = False
    layers: str | None = None

    def __post_init__(self) -> None:
        if self.sparsity is not None:
            check_sparsity(self.sparsity)
            if self.k is not None:
                raise InvalidValue(
                    f"sparsity={self.sparsity:g} and k={self.k} say the same thing twice: give one"
                )
        if self.k is not None:
            check_count(self.k)
        if self.scope not in ("layer", "global"):
            raise UnknownName("scope", str(self.scope), ("layer", "global"))
        if self.groups not in GROUP_KINDS:
            raise UnknownName("kind of group", str(self.groups), GROUP_KINDS)

    def targets(self, model: Any, select: Any) -> Any:
        """Returns the targets of `layers`, so that groups and targets are the same weights.

        Raises:
            InvalidValue: If the Sparsifier was given targets, which the groups would not follow.
        """
        if select is not None:
            raise InvalidValue(
                f"{self.info.name} finds its groups by its own setting: give layers={select!r} to "
                "the method instead of targets to the Sparsifier"
            )
        return None if self.groups == "branch" else find_targets(model, self.layers)

    def units(self, model: Any, example_input: Any = None) -> tuple[Pool, ...]:
        """Returns the pools of groups: one for each layer, or one for all.

        Args:
            model: The model.
            example_input: A small input, by which neurons and filters are found; guessed where
                possible.

        Raises:
            NoMatch: If the model has no such groups.
            InvalidValue: If groups overlap, or k is more than there are.
        """
        families = find_groups(
            model,
            self.groups,
            layers=self.layers,
            outgoing=self.outgoing,
            example_input=example_input,
        )
        shared = [tuple(families)] if self.scope == "global" else [(each,) for each in families]
        return tuple(Pool(each, self._k(each)) for each in shared)

    def step_units(
        self,
        units: Sequence[Pool],
        parameters: Tensors,
        previous: Tensors | None,
        state: dict[str, Tensor],
        clock: Clock,
    ) -> Tensors:
        """Applies the prox to every group; returns the entries of those that are zero."""
        norms = [pool.norms(parameters) for pool in units]
        factors = self.factors(units, norms, clock)
        for pool, each in zip(units, factors, strict=True):
            pool.scale_(parameters, each)
        zero = [(n == 0) | (f == 0) for n, f in zip(norms, factors, strict=True)]
        return _cleared(units, zero)

    @abstractmethod
    def factors(
        self, pools: Sequence[Pool], norms: Sequence[Tensor], clock: Clock
    ) -> Sequence[Tensor]:
        """Returns what each group is multiplied by after the optimiser's step, for each pool."""

    def finish_units(
        self,
        units: Sequence[Pool],
        parameters: Tensors,
        state: dict[str, Tensor],
        clock: Clock,
    ) -> None:
        """Sets all but the k groups of highest score in each pool to zero, in place."""
        for pool in units:
            scores = self.scores(pool.norms(parameters), pool.sizes)
            pool.scale_(parameters, keep_largest([scores], pool.k)[0].double())

    def scores(self, norms: Tensor, sizes: Tensor) -> Tensor:
        """Returns by what the last groups are chosen; by default their norms."""
        return norms

    def _k(self, families: Sequence[GroupFamily]) -> int:
        total = sum(family.size for family in families)
        if self.k is not None:
            if self.k > total:
                raise InvalidValue(
                    f"k={self.k} groups of {families[0].name} are to stay, but there are {total}"
                )
            return self.k
        density = 1 - (DEFAULT_SPARSITY if self.sparsity is None else self.sparsity)
        return max(1, count(total, density))


@dataclass(frozen=True, kw_only=True)
class RegularisedGroups(GroupMethod):
    """Base of the methods whose penalty has a strength and a gradient.

    Args:
        strength: Of the penalty; the learning rate times it is the prox's step.
        stage: "prox" throughout, or "half_space" for half-space steps from `switch` on.
        switch: Fraction of the training after which half-space steps begin, in [0, 1].
        epsilon: A group becomes zero if its inner product with itself before the step is below
            epsilon times its square, in [0, 1).
        scalar_metric: Acknowledges that with Adam and its like, which scale every entry by its
            own rate, the prox is taken in the metric of one rate for all: not their exact prox.
    """

    strength: float = 0.1
    stage: Literal["prox", "half_space"] = "prox"
    switch: float = 0.5
    epsilon: float = 0.0
    scalar_metric: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_strength(self.strength)
        if self.stage not in STAGES:
            raise UnknownName("stage", str(self.stage), STAGES)
        if not 0 <= self.switch <= 1:
            raise InvalidValue(f"switch={self.switch!r} is not allowed: a fraction in [0, 1]")
        if not 0 <= self.epsilon < 1:
            raise InvalidValue(f"epsilon={self.epsilon!r} is not allowed: it must be in [0, 1)")

    def check_optimizer(self, optimizer: Any) -> None:
        """Raises InvalidValue for an optimiser other than SGD, unless `scalar_metric`."""
        if not isinstance(optimizer, SGD) and not self.scalar_metric:
            raise InvalidValue(
                f"{self.info.name} takes its prox with one learning rate for all entries, but "
                f"{type(optimizer).__name__} scales each by its own. Use SGD (with momentum), or "
                "give scalar_metric=True to accept a prox that is not exact."
            )

    def keeps_previous(self, clock: Clock) -> bool:
        """Returns whether half-space steps have begun: they compare with the step before."""
        return self.stage == "half_space" and clock.step >= self.switch * clock.total

    def step_units(
        self,
        units: Sequence[Pool],
        parameters: Tensors,
        previous: Tensors | None,
        state: dict[str, Tensor],
        clock: Clock,
    ) -> Tensors:
        """Applies the prox or a half-space step; returns the entries of zero groups."""
        if previous is None:
            return super().step_units(units, parameters, previous, state, clock)
        zero = [self._half_space(pool, parameters, previous, clock) for pool in units]
        return _cleared(units, zero)

    @abstractmethod
    def gradient_factors(self, pool: Pool, norms: Tensor) -> Tensor:
        """Returns by what the penalty's gradient multiplies each group; 0 for zero groups."""

    def _half_space(
        self, pool: Pool, parameters: Tensors, previous: Tensors, clock: Clock
    ) -> Tensor:
        """Takes a half-space step in place; returns which groups are zero after it."""
        norms = pool.norms(previous)
        # The trial: the optimiser's step, and that along the penalty's gradient.
        pool.add_(parameters, previous, -clock.rate * self.gradient_factors(pool, norms))
        aligned = pool.inner(parameters, previous) >= self.epsilon * norms.square()
        stays = aligned & (norms > 0)
        pool.scale_(parameters, stays.double())
        return ~stays


def _cleared(pools: Sequence[Pool], zero: Sequence[Tensor]) -> Mapping[str, Tensor]:
    """Returns the entries of zero groups by parameter name."""
    found: dict[str, Tensor] = {}
    for pool, chosen in zip(pools, zero, strict=True):
        for entries in pool.entries(chosen):
            for name, gone in entries.items():
                found[name] = found[name] | gone if name in found else gone
    return found
