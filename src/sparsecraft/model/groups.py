"""Families of groups: disjoint sets of entries over several parameters, worked on as a whole.

A group may be a neuron with its bias and its BatchNorm entries, a filter, a kernel or a residual
branch. A family knows which entries of which parameters its groups own; its norms, inner products
and scalings are reductions and broadcasts over whole tensors, given by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue
from sparsecraft.model.group_slices import AxisSlice, LabelledSlice, Slice
from sparsecraft.model.units import UnitGroup

Tensors = Mapping[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class GroupFamily:
    """Groups of one kind, usually those of one layer.

    Args:
        name: The layer's name.
        size: How many groups.
        slices: What they own.
        shapes: Shape of each parameter that they own entries of.
        units: The units that go when their group is zero, where it is one of units.

    Raises:
        InvalidValue: If a slice does not fit its parameter, two groups share an entry, or a group
            is empty.

    Example:
        >>> slices = (AxisSlice("weight", (0,)), AxisSlice("bias", (0,)))
        >>> rows = GroupFamily("layer", 2, slices, {"weight": (2, 2), "bias": (2,)})
        >>> weight, bias = torch.tensor([[3.0, 0.0], [0.0, 0.0]]), torch.tensor([4.0, 1.0])
        >>> rows.norms({"weight": weight, "bias": bias})
        tensor([5., 1.], dtype=torch.float64)
    """

    name: str
    size: int
    slices: tuple[Slice, ...]
    shapes: Shapes
    units: UnitGroup | None = None

    def __post_init__(self) -> None:
        for each in self.slices:
            each.check(self.shapes[each.parameter])
            last = each.first + each.count(self.shapes[each.parameter])
            if last > self.size:
                raise InvalidValue(
                    f"{self.name}: {each.parameter} has groups up to number {last - 1}, but the "
                    f"family has {self.size}, from 0 to {self.size - 1}"
                )
        check_disjoint([self])
        empty = (self.sizes == 0).nonzero().reshape(-1)
        if len(empty):
            raise InvalidValue(
                f"{self.name}: {len(empty)} of {self.size} groups own no entries, the first of "
                f"them number {int(empty[0])}"
            )

    @classmethod
    def from_labels(cls, name: str, labels: Mapping[str, Tensor]) -> GroupFamily:
        """Returns the family in which every entry says its group.

        Args:
            name: The family's name.
            labels: Parameter name to int64 of its shape, numbers from 0 on.

        Raises:
            InvalidValue: If an entry is in no group, or a number between has no entries.
        """
        size = 1 + max(int(each.max()) for each in labels.values())
        slices = tuple(LabelledSlice(key, each, size) for key, each in labels.items())
        return cls(name, size, slices, {key: tuple(each.shape) for key, each in labels.items()})

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters that the groups own entries of, each once."""
        return tuple(dict.fromkeys(each.parameter for each in self.slices))

    @cached_property
    def sizes(self) -> Tensor:
        """Number of entries of each group: (size,), float64."""
        ones = {name: torch.ones(1).double().expand(shape) for name, shape in self.shapes.items()}
        return self._totals(each.sums(each.part(ones[each.parameter])) for each in self.slices)

    def norms(self, parameters: Tensors) -> Tensor:
        """Returns the Euclidean norm of each group, summed in float64: (size,).

        Args:
            parameters: At least those of the family, by name.

        Raises:
            InvalidValue: If a parameter is missing or has another shape than the family knows.
        """
        return self.inner(parameters, parameters).sqrt_()

    def inner(self, parameters: Tensors, others: Tensors) -> Tensor:
        """Returns the inner product of each group with the same group of others: (size,)."""
        self._check(parameters)

        def sums(each: Slice) -> Tensor:
            part = each.part(parameters[each.parameter]).detach().double()
            if others is parameters:
                return each.sums(part.square())
            return each.sums(part * each.part(others[each.parameter]).detach())

        return self._totals(sums(each) for each in self.slices)

    @torch.no_grad()
    def scale_(self, parameters: Tensors, factors: Tensor) -> None:
        """Multiplies each group by its factor, in place.

        Args:
            parameters: By name.
            factors: (size,).
        """
        self._check(parameters)
        for each in self.slices:
            part = each.part(parameters[each.parameter])
            part.mul_(self._spread(each, factors.to(part), part))

    @torch.no_grad()
    def add_(self, parameters: Tensors, others: Tensors, factors: Tensor) -> None:
        """Adds to each group its factor times the same group of others, in place."""
        self._check(parameters)
        for each in self.slices:
            part = each.part(parameters[each.parameter])
            other = each.part(others[each.parameter])
            part.addcmul_(other, self._spread(each, factors.to(part), part))

    def entries(self, chosen: Tensor) -> dict[str, Tensor]:
        """Returns parameter name to bool of its shape, True for the entries of chosen groups.

        Args:
            chosen: bool (size,).
        """
        found: dict[str, Tensor] = {}
        for each in self.slices:
            name = each.parameter
            if name not in found:
                found[name] = torch.zeros(self.shapes[name], dtype=torch.bool, device=chosen.device)
            part = each.part(found[name])
            part |= self._spread(each, chosen, part)
        return found

    def active(self, parameters: Tensors) -> Tensor:
        """Returns which groups are not all zero: bool (size,)."""
        return self.norms(parameters) > 0

    def _spread(self, each: Slice, values: Tensor, part: Tensor) -> Tensor:
        count = each.count(self.shapes[each.parameter])
        return each.spread(values[each.first : each.first + count], part)

    def _totals(self, sums: Iterable[Tensor]) -> Tensor:
        total: Tensor | None = None
        for each, found in zip(self.slices, sums, strict=True):
            if total is None:
                total = found.new_zeros(self.size)
            total[each.first : each.first + len(found)] += found.to(total.device)
        if total is None:
            raise InvalidValue(f"{self.name}: a family of groups needs a parameter")
        return total

    def _check(self, parameters: Tensors) -> None:
        """Raises unless the parameters are those that the groups were found in."""
        for name, shape in self.shapes.items():
            given = tuple(parameters[name].shape) if name in parameters else None
            if given != shape:
                raise InvalidValue(
                    f"groups of {self.name}: the parameter {name} "
                    + ("is gone" if given is None else f"has shape {given}, not {shape} any more")
                    + ". The model was changed after its groups were found: find them anew."
                )


def check_disjoint(families: Sequence[GroupFamily]) -> None:
    """Raises InvalidValue if an entry belongs to two groups, of one family or of two."""
    shapes = {name: shape for family in families for name, shape in family.shapes.items()}
    claimed: dict[str, list[tuple[GroupFamily, Slice]]] = {}
    for family in families:
        for each in family.slices:
            claimed.setdefault(each.parameter, []).append((family, each))
    for name, claims in claimed.items():
        if len(claims) == 1:
            continue
        seen = torch.zeros(shapes[name], dtype=torch.bool)
        for family, each in claims:
            part = each.part(seen)
            if bool(part.any()):
                others = sorted({other.name for other, _ in claims if other is not family})
                where = f"of {family.name}" + (f" and {', '.join(others)}" if others else "")
                raise InvalidValue(
                    f"groups overlap: {int(part.sum())} entries of {name} are in two groups "
                    f"{where}. Groups must be disjoint; of neurons in consecutive layers leave the "
                    "outgoing columns out (outgoing=False)."
                )
            part.fill_(True)


def axis_family(name: str, slices: Sequence[AxisSlice], shapes: Shapes) -> GroupFamily:
    """Returns the family of these slices, as large as the last group that they have."""
    used = {each.parameter: tuple(shapes[each.parameter]) for each in slices}
    size = max(each.first + each.count(used[each.parameter]) for each in slices)
    return GroupFamily(name, size, tuple(slices), used)
