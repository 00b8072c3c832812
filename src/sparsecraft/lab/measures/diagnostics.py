"""How far apart trained copies of a network lie, and whether a ridge lies between them.

Distances are taken over all floating entries of the state dicts, buffers included, as one vector.

Reference:
    Zimmer et al., 2023, arXiv 2306.16788, appendix; Frankle et al., 2020, arXiv 1912.05671, for the
    barrier.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue

State = Mapping[str, Tensor]


def distance(first: State, second: State) -> float:
    """Returns the Euclidean distance of two state dicts.

    Example:
        >>> distance({"w": torch.tensor([0.0, 0.0])}, {"w": torch.tensor([3.0, 4.0])})
        5.0
    """
    return float((_vector(first) - _vector(second, first)).norm())


def angle(first: State, second: State) -> float:
    """Returns the angle of two state dicts as seen from zero, in degrees.

    Raises:
        InvalidValue: If one of them is zero.
    """
    one, two = _vector(first), _vector(second, first)
    lengths = float(one.norm()) * float(two.norm())
    if not lengths:
        raise InvalidValue("a state dict is zero throughout: it has no direction")
    return math.degrees(math.acos(min(1.0, max(-1.0, float(one @ two) / lengths))))


def pairwise(
    states: Sequence[State], measure: Callable[[State, State], float] = distance
) -> dict[tuple[int, int], float]:
    """Returns the measure of every pair of state dicts, by their positions."""
    pairs = combinations(range(len(states)), 2)
    return {(a, b): measure(states[a], states[b]) for a, b in pairs}


def barycentre_distances(states: Sequence[State]) -> list[float]:
    """Returns the distance of each state dict to the mean of all."""
    if not states:
        raise InvalidValue("no state dict was given; there is no mean")
    vectors = torch.stack([_vector(state, states[0]) for state in states])
    return (vectors - vectors.mean(0)).norm(dim=1).tolist()


def barrier(
    first: State, second: State, loss: Callable[[dict[str, Tensor]], float], points: int = 11
) -> float:
    """Returns how far the loss rises above the line between two models, on the way between them.

    Args:
        first: A state dict.
        second: Another.
        loss: Of a state dict; it may gather the statistics of batch normalisation anew first.
        points: Where it is taken, both ends included; at least 3.

    Returns:
        max over t of loss((1 - t) first + t second) - (1 - t) loss(first) - t loss(second), the
        ends left out: about 0 where both lie in one basin, negative where the loss is lower
        everywhere between them.
    """
    if points < 3:
        raise InvalidValue(f"points={points}: give at least 3, two of them being the ends")
    _vector(second, first)
    shares = torch.linspace(0, 1, points, dtype=torch.float64).tolist()
    losses = [loss(_between(first, second, share)) for share in shares]
    line = [(1 - share) * losses[0] + share * losses[-1] for share in shares]
    rises = [found - straight for found, straight in zip(losses, line, strict=True)]
    return max(rises[1:-1])


def _between(first: State, second: State, share: float) -> dict[str, Tensor]:
    """Returns (1 - share) first + share second; what is not floating is of the first."""
    return {
        key: torch.lerp(value, second[key].to(value), share) if value.is_floating_point() else value
        for key, value in first.items()
    }


def _vector(state: State, like: State | None = None) -> Tensor:
    """Returns all floating entries in float64, in the order of the other state dict's keys."""
    like = state if like is None else like
    keys = [key for key, value in like.items() if value.is_floating_point()]
    if state.keys() != like.keys() or any(state[key].shape != like[key].shape for key in keys):
        raise InvalidValue(
            "the state dicts have different keys or shapes; give those of one architecture"
        )
    if not keys:
        raise InvalidValue("the state dicts hold no floating entry")
    return torch.cat([state[key].detach().double().flatten() for key in keys])
