"""How well single latents stand for known properties: precision, recall, F1, unions, weights.

A latent is active where its code is not zero, of either sign: `code != 0`, never `code > 0`, so
that signed codes count whole. A latent that is never active has no precision; its F1 is 0, not NaN,
so that it loses every ranking.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue


@dataclass(frozen=True)
class FeatureScores:
    """Every latent against every property.

    Args:
        precision: (latents, properties), of the rows with the latent those with the property; NaN
            for a latent that is never active.
        recall: (latents, properties), of the rows with the property those with the latent.
        f1: (latents, properties), their harmonic mean; 0 where they never meet.
    """

    precision: Tensor
    recall: Tensor
    f1: Tensor

    def share(self, at_least: float) -> float:
        """Returns the share of latents of which some property has at least this F1."""
        return float((self.f1.max(1).values >= at_least).double().mean())

    def best(self) -> tuple[Tensor, Tensor]:
        """Returns each property's best latent, int64 (properties,), and its F1."""
        found = self.f1.max(0)
        return found.indices, found.values


def feature_f1(active: Tensor, masks: Tensor) -> FeatureScores:
    """Returns precision, recall and F1 of latents for properties.

    Args:
        active: bool (rows, latents), `codes != 0`.
        masks: bool (rows, properties), which rows have which property; one-hot for the values of an
            attribute (`value_masks`).

    Raises:
        InvalidValue: If the rows differ in number, a type is not bool, or a property is in no row.

    Example:
        >>> active = torch.tensor([[True, False], [True, False], [False, True]])
        >>> scores = feature_f1(active, torch.tensor([[True], [False], [False]]))
        >>> [round(value, 3) for value in scores.f1[:, 0].tolist()]
        [0.667, 0.0]

    Reference:
        Makelov et al., 2024, arXiv 2405.08366, section 5.
    """
    _check(active, masks)
    a, m = active.double(), masks.double()
    both = a.T @ m
    precision, recall = both / a.sum(0)[:, None], both / m.sum(0)
    # 2 p r / (p + r) = 2 both / (active + property), which needs no case for 0 / 0.
    return FeatureScores(precision, recall, 2 * both / (a.sum(0)[:, None] + m.sum(0)))


def value_masks(index: Tensor, values: int) -> Tensor:
    """Returns bool (rows, values), one True in each row, of int64 (rows,)."""
    return torch.nn.functional.one_hot(index, values).bool()


@dataclass(frozen=True)
class UnionScores:
    """The best union of properties for each latent.

    Args:
        f1: (latents,), of the best union.
        size: int64 (latents,), how many properties it joins.
        by_size: (latents, largest size), the F1 of the first 1, 2, ... properties joined.
    """

    f1: Tensor
    size: Tensor
    by_size: Tensor


def union_f1(active: Tensor, masks: Tensor, max_group: int = 10) -> UnionScores:
    """Returns how well each latent stands for a union of properties, found greedily.

    Properties are joined in the order of their own F1, the best first.

    Args:
        active: bool (rows, latents).
        masks: bool (rows, properties).
        max_group: Properties joined at most.

    Raises:
        InvalidValue: As `feature_f1`, and for a `max_group` below 1.
    """
    if max_group < 1:
        raise InvalidValue(f"max_group={max_group} is not allowed: give at least 1")
    order = feature_f1(active, masks).f1.argsort(dim=1, descending=True)
    joined = torch.zeros_like(active)
    found = []
    for place in range(min(max_group, masks.shape[1])):
        joined = joined | masks[:, order[:, place]]
        both = (active & joined).sum(0).double()
        found.append(2 * both / (active.sum(0) + joined.sum(0)))
    by_size = torch.stack(found, 1)
    best = by_size.max(1)
    return UnionScores(best.values, best.indices + 1, by_size)


@dataclass(frozen=True)
class ConjunctionScores:
    """The best conjunction of two properties for each latent.

    Args:
        f1: (latents,), of the best conjunction; 0 if none was scored.
        best: int64 (latents,), its place in `conjunctions`; -1 if none was scored.
        conjunctions: The pairs that were scored: (attribute, place of its value) twice.
        left_out: How many others occur, but too seldom, or beyond the number allowed.
    """

    f1: Tensor
    best: Tensor
    conjunctions: tuple[tuple[tuple[str, int], tuple[str, int]], ...]
    left_out: int


def conjunction_f1(
    active: Tensor, index: Mapping[str, Tensor], *, most: int = 1000, least: int = 5
) -> ConjunctionScores:
    """Returns how well each latent stands for two values at once, of two different attributes.

    Args:
        active: bool (rows, latents).
        index: Attribute to int64 (rows,), the place of each row's value.
        most: Conjunctions scored at most; the most frequent ones are.
        least: Rows in which a conjunction must hold to be scored.

    Raises:
        InvalidValue: If there are fewer than two attributes, rows differ in number, or a number is
            not allowed.

    Example:
        >>> index = {"a": torch.tensor([0, 0, 1, 1]), "b": torch.tensor([0, 1, 0, 1])}
        >>> scores = conjunction_f1(torch.tensor([[0], [1], [0], [0]]).bool(), index, least=1)
        >>> scores.f1.tolist(), scores.conjunctions[int(scores.best[0])]
        ([1.0], (('a', 0), ('b', 1)))
    """
    if len(index) < 2 or most < 1 or least < 1:
        raise InvalidValue(
            f"{len(index)} attributes, most={most} and least={least} are not allowed: give at "
            "least two attributes, and numbers of at least 1"
        )
    for name, values in index.items():
        if len(values) != len(active):
            raise InvalidValue(f"{name!r} has {len(values)} values for {len(active)} rows")
    found = _together(index)
    kept = [each for each in found if len(each[1]) >= least][:most]
    if not kept:
        nothing = torch.full((active.shape[1],), -1)
        return ConjunctionScores(torch.zeros(len(nothing)).double(), nothing, (), len(found))
    fired = active.sum(0).double()
    f1 = torch.stack([2 * active[rows].sum(0) / (fired + len(rows)) for _, rows in kept], 1)
    best = f1.max(1)
    pairs = tuple(pair for pair, _ in kept)
    return ConjunctionScores(best.values, best.indices, pairs, len(found) - len(kept))


def _together(
    index: Mapping[str, Tensor],
) -> list[tuple[tuple[tuple[str, int], tuple[str, int]], Tensor]]:
    """Returns all pairs of values that occur, with their rows, the most frequent first."""
    found = []
    for (a, first), (b, second) in combinations(index.items(), 2):
        joined, place = torch.stack([first, second], 1).unique(dim=0, return_inverse=True)
        counts = torch.bincount(place, minlength=len(joined)).tolist()
        rows = place.argsort(stable=True).split(counts)
        for (i, j), each in zip(joined.tolist(), rows, strict=True):
            found.append((((a, i), (b, j)), each))
    return sorted(found, key=lambda each: -len(each[1]))


def feature_weights(amplitudes: Tensor, directions: Tensor) -> Tensor:
    """Returns (rows, latents), the share of each row's reconstruction that each latent makes.

    With r = amplitudes @ directions, the reconstruction less its bias, that is
    a_i <d_i, r> / ||r||^2; the shares of a row sum to 1, and are 0 where r is zero.

    Args:
        amplitudes: (rows, latents), what multiplies the directions.
        directions: (latents, d).

    Example:
        >>> feature_weights(torch.tensor([[1.0, 3.0]]), torch.eye(2)).tolist()
        [[0.10000000149011612, 0.8999999761581421]]
    """
    r = amplitudes @ directions
    square = r.square().sum(1, keepdim=True)
    return (amplitudes * (r @ directions.T) / square).where(square > 0, 0.0)


def removed_weight(weights: Tensor, removed: Tensor | Sequence[Sequence[int]]) -> Tensor:
    """Returns (rows,), the weight that the removed latents had in each row.

    Args:
        weights: (rows, latents), of `feature_weights`.
        removed: int64 (rows, k), which latents were taken out.
    """
    places = removed if isinstance(removed, Tensor) else torch.tensor(removed)
    return weights.gather(1, places).sum(1)


def _check(active: Tensor, masks: Tensor) -> None:
    for name, given in (("active", active), ("masks", masks)):
        if given.dtype != torch.bool or given.dim() != 2:
            raise InvalidValue(
                f"{name} of shape {tuple(given.shape)} and type {given.dtype} was given; a bool "
                "matrix is needed, such as codes != 0"
            )
    if len(active) != len(masks) or not len(active):
        raise InvalidValue(
            f"active has {len(active)} rows and masks {len(masks)}: give the same, at least one"
        )
    empty = (~masks.any(0)).nonzero().flatten().tolist()
    if empty:
        raise InvalidValue(f"property {empty[0]} is true in no row: leave it out")
