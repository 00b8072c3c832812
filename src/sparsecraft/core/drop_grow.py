"""Dropping and growing connections: what SET, RigL and their kin do to a mask.

The smallest active weights are dropped and as many new ones grown, so that the number of weights
never changes. How many go falls over the training, after Dettmers and Zettlemoyer (2019). What a
weight that was just dropped has lost is its value, not its chance: it may be grown again.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.kernels.selection import keep_largest

Anneal = Literal["cosine", "constant", "exponential"]
ANNEALS: tuple[str, ...] = get_args(Anneal)


def drop_fraction(
    progress: float, first: float, anneal: str = "cosine", rate: float = 5.0
) -> float:
    """Returns the fraction of active weights to drop.

    Args:
        progress: Of the way from the first to the last update, in [0, 1].
        first: Fraction at progress 0.
        anneal: "cosine" falls to 0 as half a cosine, "constant" stays, "exponential" falls by
            exp(-rate * progress).
        rate: Of the exponential.

    Example:
        >>> drop_fraction(0.0, 0.3), round(drop_fraction(0.5, 0.3), 12), drop_fraction(1.0, 0.3)
        (0.3, 0.15, 0.0)

    Reference:
        Evci et al., 2020, arXiv 1911.11134, section 3; Dettmers, Zettlemoyer, 2019, 1907.04840.
    """
    if anneal == "cosine":
        return first / 2 * (1 + math.cos(math.pi * progress))
    if anneal == "constant":
        return first
    if anneal == "exponential":
        return first * math.exp(-rate * progress)
    raise UnknownName("anneal", anneal, ANNEALS)


def dropped(weight: Tensor, mask: Tensor, fraction: float) -> Tensor:
    """Returns the mask without the smallest int(fraction * active) of its weights.

    Args:
        weight: Of any shape.
        mask: bool of this shape, True where active.
        fraction: How many of the active ones go, in [0, 1].

    Example:
        >>> weight = torch.tensor([[4.0, -1.0, 0.0, 2.0]])
        >>> dropped(weight, torch.tensor([[True, True, False, True]]), 0.4)
        tensor([[ True, False, False,  True]])
    """
    active = int(mask.sum())
    # Below every magnitude, so that an active weight of exactly zero comes before inactive ones.
    scores = weight.abs().masked_fill_(~mask, -1.0)
    return keep_largest([scores], active - int(fraction * active))[0]


def grown(keep: Tensor, scores: Tensor, total: int) -> Tensor:
    """Returns the mask with the entries of highest score added, `total` in all.

    Args:
        keep: bool, what stays.
        scores: Of this shape, at least 0; the highest outside `keep` are added.
        total: Entries of the new mask.

    Raises:
        InvalidValue: If there are already more than `total`.

    Example:
        >>> grown(torch.tensor([True, False, False]), torch.tensor([9.0, 1.0, 2.0]), 2)
        tensor([ True, False,  True])
    """
    missing = total - int(keep.sum())
    if missing < 0:
        raise InvalidValue(f"{int(keep.sum())} weights are kept; growing cannot make that {total}")
    candidates = scores.masked_fill(keep, -1.0)
    return keep | keep_largest([candidates], missing)[0]


def random_scores(shape: tuple[int, ...], stream: torch.Generator) -> Tensor:
    """Returns scores in [0, 1) that all but never tie, drawn on the CPU."""
    return torch.rand(shape, generator=stream, dtype=torch.float64)
