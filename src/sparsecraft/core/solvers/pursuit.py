"""Sparse codes built up atom by atom: orthogonal matching pursuit.

Each row takes the atom that correlates most with what is left of it, and fits all its atoms again
by least squares, until it has k of them or nothing is left (Pati et al., 1993). All rows go side by
side: their small systems are solved in one batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.penalties import check_count
from sparsecraft.core.solvers.problem import Solution, check_rows


@torch.no_grad()
def omp(x: Tensor, dictionary: Tensor, k: int) -> Solution:
    """Returns codes of at most k atoms a row, each fitted by least squares on its support.

    Args:
        x: (rows, d).
        dictionary: (components, d), of any norms; an atom of zeros is never taken.
        k: Atoms that a row may take.

    Returns:
        The codes; `steps` counts the atoms that a row took, fewer than k where nothing was left.

    Raises:
        InvalidValue: If shapes do not fit, or k is not from 1 to the number of atoms.
        NonFinite: If x has NaN or infinite entries.

    Example:
        >>> omp(torch.tensor([[3.0, 0.5]]), torch.eye(2), k=1).codes
        tensor([[3., 0.]])

    Reference:
        Pati, Rezaiifar and Krishnaprasad, 1993, Asilomar Conf. Signals, Systems and Computers.
    """
    check_rows(x, dictionary)
    if check_count(k) > len(dictionary):
        raise InvalidValue(f"k={k} is not allowed: the dictionary has {len(dictionary)} atoms")
    norms = dictionary.norm(dim=1)
    unit = dictionary / norms.clamp_min(torch.finfo(x.dtype).tiny)[:, None]
    products, target = unit @ unit.T, x @ unit.T
    # A correlation below this is rounding: the row is a sum of the atoms that it has.
    least = 100 * torch.finfo(x.dtype).eps * x.norm(dim=1)
    codes, steps = torch.zeros_like(target), target.new_zeros(len(x), dtype=torch.int64)
    support = target.new_zeros(len(x), k, dtype=torch.int64)
    active = torch.arange(len(x), device=x.device)
    for count in range(1, k + 1):
        correlation = (target[active] - codes[active] @ products).abs()
        best, atom = correlation.masked_fill(codes[active] != 0, -1).max(1)
        active, atom = (each[best > least[active]] for each in (active, atom))
        support[active, count - 1] = atom
        taken = support[active, :count]
        entries, solved = _fitted(products, target[active].gather(1, taken), taken)
        active = active[solved]
        if not active.numel():
            break
        codes[active] = codes[active].scatter(1, taken[solved], entries[solved])
        steps[active] = count
    settled = torch.ones_like(steps, dtype=torch.bool)
    return Solution(codes / norms.clamp_min(torch.finfo(x.dtype).tiny), steps, settled)


def _fitted(products: Tensor, target: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the entries (rows, count) of the atoms taken, and whether they were independent."""
    grams = products[taken[:, :, None], taken[:, None, :]]
    factor, failed = torch.linalg.cholesky_ex(grams)
    return torch.cholesky_solve(target[..., None], factor)[..., 0], failed == 0
