"""Symbols of entries, the classes they fall into, and the labels that carry them on a tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Labels = list[Tensor]
"""Each a tensor of symbols that broadcasts to the labelled one: an axis without units has size 1.
No two of them vary along the same axis."""
Part = tuple[Sequence[int], Labels]
"""The shape and the labels of an operand."""


class Symbols:
    """Classes of symbols that must stay together, with what is known of each symbol."""

    def __init__(self, size: int) -> None:
        self.parent = torch.arange(size)
        self.frozen = torch.zeros(size, dtype=torch.bool)
        self.split = torch.zeros(size, dtype=torch.bool)
        self.outgoing = torch.zeros(size, dtype=torch.bool)

    def find(self, symbols: Tensor) -> Tensor:
        """Returns the representative of each symbol's class."""
        root = self.parent[symbols]
        while True:
            above = self.parent[root]
            if torch.equal(above, root):
                self.parent[symbols] = root
                return root
            root = above

    def union(self, first: Tensor, second: Tensor) -> None:
        """Makes each symbol of the first one class with its partner in the second."""
        pairs = [each.reshape(-1) for each in torch.broadcast_tensors(first, second)]
        while True:
            a, b = (self.find(each) for each in pairs)
            apart = a != b
            if not bool(apart.any()):
                return
            # Roots only ever point to smaller ones, so that no cycle can arise.
            high, low = torch.maximum(a, b)[apart], torch.minimum(a, b)[apart]
            self.parent.scatter_reduce_(0, high, low, "amin")


def varying(label: Tensor) -> list[int]:
    """Returns the axes along which the label's symbols differ."""
    return [axis for axis, size in enumerate(label.shape) if size > 1]


def padded(label: Tensor, rank: int) -> Tensor:
    """Returns the label with axes of size 1 put in front, up to this rank."""
    return label.view([1] * (rank - label.dim()) + list(label.shape))


def as_channels(tensor: Tensor, labels: Labels, rank: int) -> Part:
    """Returns the shape and labels of a vector laid along axis 1."""
    shape = [1, tensor.numel()] + [1] * (rank - 2)
    return shape, [label.reshape(shape) for label in labels]


def tensors_in(values: Any) -> list[Tensor]:
    """Returns the tensors in nested tuples, lists and mappings, in order."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, Mapping):
        values = list(values.values())
    if isinstance(values, list | tuple):
        return [tensor for value in values for tensor in tensors_in(value)]
    return []
