"""The dense model that is as small as a sparse one: the control that a sparse model must beat.

A sparse network is worth its trouble only if it is better than a narrower dense one with as many
parameters (Liu and Wang, 2023, lesson 1). All layers become narrower by the same share, which takes
their products down by its square: the share is about the root of the density. Whole neurons,
channels and heads are cut from a fresh model at random, so that any architecture whose units can be
found has this control; what must keep its width, such as the axis that a layer norm sees, keeps it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import BudgetError, InvalidValue
from sparsecraft.core.seeds import generator
from sparsecraft.model.compaction import compact
from sparsecraft.model.units import UnitGroup, find_units

Widths = dict[str, int]
"""Group name to the units that it keeps."""
_HALVINGS = 40


@dataclass(frozen=True)
class SmallDense:
    """A narrower copy of a fresh model.

    Args:
        model: Dense, not trained.
        parameters: How many it has.
        wanted: How many it was to have.
        widths: Group name to (units kept, units there were).
    """

    model: nn.Module
    parameters: int
    wanted: int
    widths: Mapping[str, tuple[int, int]]

    @property
    def residual(self) -> float:
        """By how much the number of parameters misses what was wanted, as a fraction of it."""
        return self.parameters / self.wanted - 1


def small_dense(
    model: nn.Module, parameters: int, example_input: Any = None, *, seed: int = 0
) -> SmallDense:
    """Returns the model cut to a number of parameters, all layers by about the same share.

    Integer widths seldom meet the number exactly: `residual` says how near they come. The units
    that stay are chosen at random and keep the weights that they began with.

    Args:
        model: A fresh model; it is left as it was.
        parameters: How many the smaller one shall have.
        example_input: A small input, guessed where that is possible.
        seed: Of the units that stay.

    Raises:
        NoMatch: If no units can be found.
        BudgetError: If the narrowest model still has more parameters; the message says how many.
        InvalidValue: If the number is below 1 or above that of the model.

    Example:
        >>> wide = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))
        >>> small = small_dense(wide, 200)
        >>> small.model[0].out_features, small.parameters, round(small.residual, 3)
        (15, 199, -0.005)

    Reference:
        Liu, Wang, 2023, arXiv 2302.02596, lesson 1.
    """
    total = sum(p.numel() for p in model.parameters())
    if not 1 <= parameters <= total:
        raise InvalidValue(
            f"a smaller model of {parameters} parameters cannot be made of one that has {total}"
        )
    groups = find_units(model, example_input)
    sizes = _Sizes(model, groups)
    narrowest = sizes.parameters({group.name: 1 for group in groups})
    if narrowest > parameters:
        raise BudgetError(
            f"{type(model).__name__} cannot be cut to {parameters} parameters: with one unit in "
            f"each of its {len(groups)} groups {narrowest} are left, since nothing else may change "
            "its width"
        )
    widths = solve_widths(sizes, parameters)
    keep = {
        group.name: _chosen(group, widths[group.name], seed)
        for group in groups
        if widths[group.name] < group.size
    }
    smaller, _ = compact(model, keep, example_input, groups=groups)
    found = sum(p.numel() for p in smaller.parameters())
    return SmallDense(
        smaller, found, parameters, {g.name: (widths[g.name], g.size) for g in groups}
    )


class _Sizes:
    """How many parameters a model has, given how many units each group keeps."""

    def __init__(self, model: nn.Module, groups: Sequence[UnitGroup]) -> None:
        self.groups = groups
        self.shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}

    def parameters(self, widths: Mapping[str, int]) -> int:
        """Returns the number of parameters."""
        gone: dict[tuple[str, int], int] = defaultdict(int)
        for group in self.groups:
            for each in group.slices:
                gone[each.parameter, each.dim] += (group.size - widths[group.name]) * each.width
        return sum(
            math.prod(size - gone[name, dim] for dim, size in enumerate(shape))
            for name, shape in self.shapes.items()
        )


def solve_widths(sizes: _Sizes, wanted: int) -> Widths:
    """Returns the widths whose number of parameters is nearest, all by about the same share.

    A layer has few heads, and each is large: both numbers of heads next to the exact share are
    tried, the finer groups make up for the rest, and single units for the rest of that.
    """
    below, above = _around(sizes, wanted, {})
    found = []
    for each in (below, above):
        heads = {g.name: _width(g, each) for g in sizes.groups if g.kind == "heads"}
        for share in _around(sizes, wanted, heads):
            found.append(_topped_up(sizes, wanted, _at(sizes, share, heads)))
    return min(found, key=lambda widths: abs(sizes.parameters(widths) - wanted))


def _around(sizes: _Sizes, wanted: int, fixed: Widths) -> tuple[float, float]:
    """Returns two shares, one on each side of the number that is wanted, next to each other."""
    below, above = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (below + above) / 2
        if sizes.parameters(_at(sizes, middle, fixed)) <= wanted:
            below = middle
        else:
            above = middle
    return below, above


def _at(sizes: _Sizes, share: float, fixed: Widths) -> Widths:
    return {g.name: fixed.get(g.name, _width(g, share)) for g in sizes.groups}


def _width(group: UnitGroup, share: float) -> int:
    return max(1, round(share * group.size))


def _topped_up(sizes: _Sizes, wanted: int, widths: Widths) -> Widths:
    """Returns the widths with a unit more in those groups where that comes nearer."""

    def with_one_more(name: str) -> Widths:
        return {**widths, name: widths[name] + 1}

    finer = [g for g in sizes.groups if g.kind != "heads" and widths[g.name] < g.size]
    for group in sorted(finer, key=lambda g: -sizes.parameters(with_one_more(g.name))):
        more = with_one_more(group.name)
        if abs(sizes.parameters(more) - wanted) < abs(sizes.parameters(widths) - wanted):
            widths = more
    return widths


def _chosen(group: UnitGroup, count: int, seed: int) -> Tensor:
    keep = torch.zeros(group.size, dtype=torch.bool)
    order = torch.randperm(group.size, generator=generator(seed, "small dense", group.name))
    keep[order[:count]] = True
    return keep
