"""Controls for claims on dictionaries: directions nobody learned, and components without choice."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsecraft.core.fidelity import ReconstructionSums
from sparsecraft.core.seeds import generator
from sparsecraft.kernels.codes import select_rows

_ROWS_AT_ONCE = 500


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
        basis = directions[chosen].transpose(1, 2)
        solved = torch.linalg.lstsq(basis, centred.unsqueeze(2)).solution
        sums.add(x, (basis @ solved).squeeze(2) + mean)
    return sums.fvu


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
