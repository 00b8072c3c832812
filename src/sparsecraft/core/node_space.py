"""Random sparse configurations in node space: which hidden nodes of which layer stay.

A node that goes takes its incoming weights, its bias and its outgoing weights with it, so that the
weight density between two hidden layers is the product of their node densities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from sparsecraft.core.errors import BudgetError, InvalidValue, UnknownName, check_sparsity
from sparsecraft.core.mask import count, random_mask
from sparsecraft.core.seeds import generator

Configuration = dict[str, Tensor]
"""Layer name to bool (width,), True for the nodes that stay."""

MODES = ("per_layer", "global")


@dataclass(frozen=True, kw_only=True)
class NodeSpace:
    """All configurations of one sparsity, drawn uniformly.

    Args:
        widths: Layer name to number of hidden nodes.
        sparsity: Fraction of hidden nodes that go, in [0, 1).
        mode: "per_layer" keeps count(width, 1 - sparsity) nodes of each layer, "global" that share
            of all nodes together.
        min_keep: The least that stays of every layer; a smaller draw is repaired.

    Example:
        >>> space = NodeSpace(widths={"one": 10, "two": 4}, sparsity=0.9)
        >>> {name: int(keep.sum()) for name, keep in space.sample(0, 7).items()}
        {'one': 1, 'two': 1}

    Reference:
        Farahani, 2024, arXiv 2403.08265.
    """

    widths: Mapping[str, int]
    sparsity: float
    mode: Literal["per_layer", "global"] = "per_layer"
    min_keep: int = 1

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        if self.mode not in MODES:
            raise UnknownName("node space mode", str(self.mode), MODES)
        if not self.widths:
            raise InvalidValue("a node space needs at least one hidden layer; widths is empty")
        if self.min_keep < 1:
            raise InvalidValue(f"min_keep={self.min_keep} would allow an empty layer; give >= 1")
        for name, width in self.widths.items():
            if width < self.min_keep:
                raise InvalidValue(f"{name} has {width} nodes, fewer than min_keep={self.min_keep}")
        if self.mode == "global" and self.kept < self.min_keep * len(self.widths):
            raise BudgetError(
                f"sparsity {self.sparsity:g} keeps {self.kept} of {sum(self.widths.values())} "
                f"nodes, fewer than {self.min_keep} for each of {len(self.widths)} layers. Use a "
                "lower sparsity, or mode='per_layer', which rounds up."
            )

    @property
    def kept(self) -> int:
        """How many nodes every configuration keeps, over all layers."""
        density = 1 - self.sparsity
        if self.mode == "global":
            return count(sum(self.widths.values()), density)
        return sum(max(self.min_keep, count(n, density)) for n in self.widths.values())

    def sample(self, seed: int, trial: int) -> Configuration:
        """Returns the configuration of a trial; it depends on the seed and the trial alone."""
        if self.mode == "global":
            return self._global(seed, trial)
        configuration = {}
        for name, width in self.widths.items():
            kept = max(self.min_keep, count(width, 1 - self.sparsity))
            draw = partial(generator, seed, "node space", trial, name)
            configuration[name] = random_mask((width,), kept, draw)
        return configuration

    def _global(self, seed: int, trial: int) -> Configuration:
        stream = generator(seed, "node space", trial)
        total = sum(self.widths.values())
        flat = random_mask((total,), self.kept, lambda: stream)
        layers = flat.split(list(self.widths.values()))
        while short := [keep for keep in layers if int(keep.sum()) < self.min_keep]:
            spare = [keep for keep in layers if int(keep.sum()) > self.min_keep]
            _flip_one(short[0], to=True, stream=stream)
            # Every node that may go is equally likely to make room.
            sizes = torch.tensor([float(keep.sum()) for keep in spare])
            chosen = int(torch.multinomial(sizes, 1, generator=stream))
            _flip_one(spare[chosen], to=False, stream=stream)
        return dict(zip(self.widths, (keep.clone() for keep in layers), strict=True))


def weight_density(widths: Sequence[int], kept: Sequence[int]) -> float:
    """Returns the share of weights that stay in a chain of fully connected layers.

    Args:
        widths: Nodes of each layer from the input to the output.
        kept: How many of them stay, in the same order.

    Raises:
        InvalidValue: If the lengths differ, there is no layer, or more stay than there are.

    Example:
        >>> weight_density([10, 100, 100, 10], [10, 10, 10, 10])
        0.025
    """
    if len(widths) != len(kept) or len(widths) < 2:
        raise InvalidValue(
            f"widths has {len(widths)} entries and kept {len(kept)}; give both for every layer, "
            "input and output included."
        )
    if any(not 0 <= k <= n for n, k in zip(widths, kept, strict=True)):
        raise InvalidValue(f"kept={list(kept)} is not between 0 and widths={list(widths)}")
    stay = sum(a * b for a, b in pairwise(kept))
    return stay / sum(a * b for a, b in pairwise(widths))


def _flip_one(keep: Tensor, *, to: bool, stream: torch.Generator) -> None:
    """Sets one uniformly drawn entry to the value, among those that do not have it."""
    places = (keep != to).nonzero().reshape(-1)
    keep[places[int(torch.randint(len(places), (1,), generator=stream))]] = to
