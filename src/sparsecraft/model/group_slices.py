"""Which entries of one parameter belong to which groups: by axes, or by a label for each entry.

Both kinds answer in the same three words: `part` is the view of the parameter that they cover,
`sums` adds up a tensor of that shape group by group, and `spread` gives every entry its group's
number. None of them loops over groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue


@dataclass(frozen=True)
class AxisSlice:
    """Groups that lie along axes: one group for each place on them, in row-major order.

    Args:
        parameter: Name of the parameter.
        axes: The axes that tell groups apart: (0,) for rows, (0, 1) for the kernels of a
            convolution, all of them for single entries, none where one group has the whole.
        offset: Where the first group begins, along a single axis.
        width: Consecutive entries of a group along a single axis.
        first: Number of the first group within its family.
        groups: How many groups along a single axis; None for all that fit from the offset on.

    Example:
        >>> rows = AxisSlice("weight", axes=(0,))
        >>> rows.sums(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([3., 7.])
    """

    parameter: str
    axes: tuple[int, ...]
    offset: int = 0
    width: int = 1
    first: int = 0
    groups: int | None = None

    def count(self, shape: tuple[int, ...]) -> int:
        """Returns how many groups a parameter of this shape has here."""
        if len(self.axes) != 1:
            return int(torch.Size([shape[axis] for axis in self.axes]).numel())
        fitting = (shape[self.axes[0]] - self.offset) // self.width
        return fitting if self.groups is None else self.groups

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises InvalidValue unless a parameter of this shape has these groups."""
        strange = [axis for axis in self.axes if not 0 <= axis < len(shape)]
        if strange or len(set(self.axes)) < len(self.axes) or list(self.axes) != sorted(self.axes):
            raise InvalidValue(
                f"{self.parameter}: axes {self.axes} do not fit its shape {shape}: give different "
                f"ones from 0 to {len(shape) - 1}, in ascending order"
            )
        if len(self.axes) == 1:
            end = self.offset + self.count(shape) * self.width
            if self.offset < 0 or self.width < 1 or end > shape[self.axes[0]]:
                raise InvalidValue(
                    f"{self.parameter}: groups of {self.width} entries from {self.offset} to {end} "
                    f"do not fit axis {self.axes[0]} of its shape {shape}"
                )

    def part(self, parameter: Tensor) -> Tensor:
        """Returns the entries of all groups, a view."""
        if len(self.axes) != 1:
            return parameter
        axis = self.axes[0]
        count = self.count(tuple(parameter.shape))
        return parameter.narrow(axis, self.offset, count * self.width)

    def sums(self, part: Tensor) -> Tensor:
        """Returns the sum over each group: (groups,), in the type of the part."""
        rest = [axis for axis in range(part.dim()) if axis not in self.axes]
        sums = (part.sum(rest) if rest else part).reshape(-1)
        return sums if self.width == 1 else sums.view(-1, self.width).sum(1)

    def spread(self, values: Tensor, part: Tensor) -> Tensor:
        """Returns (groups,) values in a shape that broadcasts to that of the part."""
        values = values.repeat_interleave(self.width) if self.width > 1 else values
        shape = [n if axis in self.axes else 1 for axis, n in enumerate(part.shape)]
        return values.view(shape)


@dataclass(frozen=True, eq=False)
class LabelledSlice:
    """Groups of any entries: each entry of the parameter says which group it is in.

    Args:
        parameter: Name of the parameter.
        labels: int64 of the parameter's shape, numbers of groups.
        size: How many groups the family has.
    """

    parameter: str
    labels: Tensor
    size: int
    first: int = 0

    def count(self, shape: tuple[int, ...]) -> int:
        """Returns how many groups the family has."""
        return self.size

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises InvalidValue unless every entry of such a parameter is in one of the groups."""
        if tuple(self.labels.shape) != shape or self.labels.dtype != torch.int64:
            raise InvalidValue(
                f"{self.parameter}: labels are {self.labels.dtype} of shape "
                f"{tuple(self.labels.shape)}; give int64 of the parameter's shape {shape}"
            )
        outside = (self.labels < 0) | (self.labels >= self.size)
        if bool(outside.any()):
            raise InvalidValue(
                f"{self.parameter}: {int(outside.sum())} of {outside.numel()} entries are in no "
                f"group, the first with label {int(self.labels[outside][0])}: groups must cover "
                f"the parameter with labels from 0 to {self.size - 1}"
            )

    def part(self, parameter: Tensor) -> Tensor:
        """Returns the parameter."""
        return parameter

    def sums(self, part: Tensor) -> Tensor:
        """Returns the sum over each group: (groups,), in the type of the part."""
        labels = self.labels.reshape(-1).to(part.device)
        return part.new_zeros(self.size).index_add_(0, labels, part.reshape(-1))

    def spread(self, values: Tensor, part: Tensor) -> Tensor:
        """Returns each entry's group's value, in the shape of the part."""
        return values[self.labels.to(values.device)]


Slice = AxisSlice | LabelledSlice
