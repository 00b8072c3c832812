"""Controls for claims on dictionaries: directions nobody learned, and components without choice."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsecraft.core.fidelity import ReconstructionSums
from sparsecraft.core.seeds import generator
from sparsecraft.kernels.codes import select_rows

_ROWS_AT_ONCE = 500
_DEPENDENT = 1e-6


def random_directions(train: Tensor, test: Tensor, latents: int, k: int, seed: int) -> float:
    """Returns the share of variance that k of so many random directions leave unexplained.

    Each row keeps those of largest projection and is projected onto their span: as well as a
    dictionary can do with this choice.

    Args:
        train: (rows, width), of which the mean is taken.
        test: (rows, width).
        latents: Directions to choose from.
        k: Of each row.
        seed: Of the directions.
    """
    directions = torch.randn(latents, train.shape[1], generator=generator(seed, "random control"))
    directions = directions / directions.norm(dim=1, keepdim=True)
    mean, sums = train.mean(0), ReconstructionSums()
    for x in test.split(_ROWS_AT_ONCE):
        centred = x - mean
        chosen = select_rows(centred @ directions.T, k, absolute=True)[1].view(len(x), k)
        sums.add(x, x - _left_over(centred.double(), directions[chosen].double()))
    return sums.fvu


def _left_over(rows: Tensor, spans: Tensor) -> Tensor:
    """Returns what is orthogonal to each row's own directions, by Gram and Schmidt.

    Written in elementwise steps: LAPACK's least squares depend on where a tensor lies in memory.

    Args:
        rows: (rows, width).
        spans: (rows, k, width).
    """
    found: list[Tensor] = []
    for direction in spans.unbind(1):
        for each in found:
            direction = direction - (direction * each).sum(1, keepdim=True) * each
        norm = direction.norm(dim=1, keepdim=True)
        # A direction within the span of those before adds nothing.
        direction = (direction / norm).where(norm > _DEPENDENT, 0.0)
        rows = rows - (rows * direction).sum(1, keepdim=True) * direction
        found.append(direction)
    return rows


def principal_components(train: Tensor, test: Tensor, k: int) -> float:
    """Returns the share of variance that the first k principal components leave unexplained.

    Args:
        train: (rows, width), of which they are taken.
        test: (rows, width).
        k: How many; the same for every row.
    """
    mean = train.mean(0)
    basis = torch.linalg.eigh((train - mean).T.double() @ (train - mean).double())[1][:, -k:]
    sums = ReconstructionSums()
    sums.add(test, ((test - mean).double() @ basis @ basis.T).float() + mean)
    return sums.fvu
