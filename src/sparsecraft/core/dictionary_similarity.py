"""How alike two dictionaries are: recovered features, and features found again by another run.

A direction is found again if some direction of the other dictionary has a cosine with it above a
bound. Everything is computed in blocks, so that no matrix of all pairs is held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue, NonFinite

# Rows of a block of cosines.
BLOCK = 4096


@dataclass(frozen=True)
class Consistency:
    """What the runs of one training share.

    Args:
        mean: Mean over ordered pairs of runs of the mean maximal cosine of a latent (MCS).
        share: Mean over ordered pairs of the share of latents whose maximal cosine exceeds `above`.
        above: The bound.
        pairs: Ordered pairs of runs.
    """

    mean: float
    share: float
    above: float
    pairs: int


def max_cosines(directions: Tensor, others: Tensor, *, signed: bool = True) -> Tensor:
    """Returns (n,): the largest cosine of each direction with any of the others.

    Args:
        directions: (n, d).
        others: (m, d).
        signed: Whether opposite directions differ; False takes absolute cosines.

    Raises:
        InvalidValue: If the shapes do not fit or one is empty.
        NonFinite: If a value is NaN or infinite.

    Example:
        >>> max_cosines(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0], [3.0, 4.0]])).tolist()
        [0.6000000238418579]
    """
    rows, columns = _units(directions), _units(others)
    if rows.shape[1] != columns.shape[1]:
        raise InvalidValue(
            f"directions of width {rows.shape[1]} and {columns.shape[1]} cannot be compared"
        )
    best = []
    for block in rows.split(BLOCK):
        found = torch.full((len(block),), -1.0, dtype=rows.dtype, device=rows.device)
        for part in columns.split(BLOCK):
            cosines = block @ part.T
            found = torch.maximum(found, (cosines if signed else cosines.abs()).amax(1))
        best.append(found)
    return torch.cat(best)


def recovery_rate(
    dictionary: Tensor, features: Tensor, *, above: float = 0.9, signed: bool = True
) -> float:
    """Returns the share of true features that some direction of the dictionary points along.

    Args:
        dictionary: (d_sae, d).
        features: (n, d), the true ones.
        above: What the cosine must exceed.
        signed: Whether opposite directions differ.

    Example:
        >>> recovery_rate(torch.eye(3)[:2], torch.eye(3))
        0.6666666666666666

    Reference:
        Chen et al., 2025, arXiv 2506.14002, section 5.
    """
    found = max_cosines(features, dictionary, signed=signed) > above
    return int(found.sum()) / len(found)


def feature_consistency(
    dictionaries: Sequence[Tensor],
    *,
    above: float = 0.9,
    chosen: Sequence[Tensor] | None = None,
    signed: bool = True,
) -> Consistency:
    """Returns how many latents of a run are found again by the others, over all ordered pairs.

    Args:
        dictionaries: (d_sae, d) of each run, at least two.
        above: What the cosine must exceed.
        chosen: The latents of each run to ask about (indices or bool), such as those that fire
            most; they are looked for among all latents of the other run. All if left out.
        signed: Whether opposite directions differ.

    Raises:
        InvalidValue: For fewer than two dictionaries, or another number of choices.

    Example:
        >>> feature_consistency([torch.eye(2), torch.eye(2).flip(0)]).share
        1.0

    Reference:
        Chen et al., 2025, arXiv 2506.14002, section 6.
    """
    if len(dictionaries) < 2:
        raise InvalidValue(
            f"{len(dictionaries)} dictionary was given: consistency needs at least two runs"
        )
    if chosen is not None and len(chosen) != len(dictionaries):
        raise InvalidValue(f"{len(chosen)} choices were given for {len(dictionaries)} dictionaries")
    asked = [d if chosen is None else d[chosen[i]] for i, d in enumerate(dictionaries)]
    means, shares = [], []
    for one, other in permutations(range(len(dictionaries)), 2):
        cosines = max_cosines(asked[one], dictionaries[other], signed=signed)
        means.append(float(cosines.double().mean()))
        shares.append(float((cosines > above).double().mean()))
    return Consistency(sum(means) / len(means), sum(shares) / len(shares), above, len(means))


def _units(directions: Tensor) -> Tensor:
    """Returns the rows at norm one, a zero row as it is."""
    if directions.dim() != 2 or not len(directions):
        raise InvalidValue(
            f"directions of shape {tuple(directions.shape)} were given: give (n, d), n at least 1"
        )
    norms = directions.norm(dim=1, keepdim=True)
    if not bool(torch.isfinite(norms).all()):
        raise NonFinite("directions hold NaN or infinite values: leave those latents out")
    return directions / norms.clamp_min(torch.finfo(directions.dtype).tiny)
