"""What other dictionaries and codings leave of rows: pursuit, scikit-learn's learner, PCA."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sparsecraft.core.errors import MissingDependency
from sparsecraft.core.fidelity import ReconstructionSums
from sparsecraft.core.seeds import derive, generator
from sparsecraft.core.solvers import omp


def unexplained(rows: Tensor, reconstruction: Tensor) -> float:
    """Returns the share of the rows' variance that a reconstruction leaves."""
    sums = ReconstructionSums()
    sums.add(rows, reconstruction)
    return sums.fvu


def random_atoms(count: int, width: int, seed: int) -> Tensor:
    """Returns (count, width) random directions of norm one."""
    drawn = torch.randn(count, width, generator=generator(seed, "random atoms"))
    return drawn / drawn.norm(dim=1, keepdim=True)


def left_by_pursuit(atoms: Tensor, rows: Tensor, active: int) -> float:
    """Returns what orthogonal matching pursuit leaves with this many atoms for each row.

    Args:
        atoms: (components, d), of any norm above 0.
        rows: (rows, d).
        active: Atoms for each row.
    """
    unit = (atoms / atoms.norm(dim=1, keepdim=True).clamp_min(1e-8)).double()
    return unexplained(rows, (omp(rows.double(), unit, active).codes @ unit).to(rows))


def left_by_components(train: Tensor, rows: Tensor, active: int) -> float:
    """Returns what the first principal directions of the training rows leave of other rows."""
    directions = torch.linalg.eigh((train.T @ train).double())[1].flip(1)[:, :active].to(rows)
    return unexplained(rows, rows @ directions @ directions.T)


def scikit_learn_atoms(
    rows: Tensor, count: int, *, strength: float, batches: int, batch: int, seed: int
) -> Tensor:
    """Returns (count, d), what scikit-learn's online learner finds in as many batches.

    Args:
        rows: (rows, d), at least batches * batch of them for batches of full size.
        count: Atoms.
        strength: Of its L1 penalty.
        batches: Steps of its dictionary.
        batch: Rows of each.
        seed: Of its first dictionary.

    Raises:
        MissingDependency: If scikit-learn is not installed.
    """
    try:
        from sklearn.decomposition import MiniBatchDictionaryLearning
    except ImportError as error:
        raise MissingDependency("scikit-learn", "lab", "Its dictionary learning") from error
    learner = MiniBatchDictionaryLearning(
        n_components=count,
        alpha=strength,
        batch_size=batch,
        fit_algorithm="cd",
        transform_max_iter=10_000,
        random_state=derive(seed, "scikit-learn") % 2**32,
    )
    # In float32 its own stopping rule asks for more than the numbers hold.
    for each in np.array_split(rows[: batch * batches].double().numpy(), batches):
        learner.partial_fit(each)
    return torch.from_numpy(learner.components_).to(rows)
