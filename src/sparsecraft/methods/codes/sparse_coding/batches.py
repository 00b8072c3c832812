"""One batch of dictionary learning: norms, codes, and a step of the dictionary.

Atoms are brought to norm one before the coding (CEL0 depends on it), codes start from zero, and
after they have settled one further step is taken. The dictionary then moves along the gradient
summed, not averaged, over the rows. Rows that have not settled do not move it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecraft.core.penalties import Penalty
from sparsecraft.core.solvers import Decay, Solution, Stopping, ista, lipschitz

SMALLEST_NORM = 1e-8
Solver = Callable[..., Solution]


@dataclass(frozen=True)
class BatchResult:
    """What a batch did.

    Args:
        dictionary: (components, d) after the step, not normalised again.
        codes: (settled rows, components), with which it was made.
        error: Mean squared entry of the residual that made the step; NaN if no row had settled.
        settled: bool (rows,).
        steps: int64 (rows,) of the coding.
        shortened: Whether the dictionary's step would have overshot and was shortened.
    """

    dictionary: Tensor
    codes: Tensor
    error: float
    settled: Tensor
    steps: Tensor
    shortened: bool = False


def unit_rows(dictionary: Tensor) -> Tensor:
    """Returns the atoms brought to norm one; norms under 1e-8 count as that.

    Example:
        >>> unit_rows(torch.tensor([[3.0, 4.0]]))
        tensor([[0.6000, 0.8000]])
    """
    return dictionary / dictionary.norm(dim=1, keepdim=True).clamp_min(SMALLEST_NORM)


@torch.no_grad()
def learn_batch(
    x: Tensor,
    dictionary: Tensor,
    penalty: Penalty,
    *,
    step: float | Decay,
    rate: float,
    stopping: Stopping,
    solver: Solver = ista,
) -> BatchResult:
    """Returns the dictionary after one batch, and what was found on the way.

    Args:
        x: (rows, d).
        dictionary: (components, d).
        penalty: Of the codes; CEL0 with a norm of one, which is the atoms'.
        step: Of the codes' gradient; a `Decay` leaves the prox at the first one, as the official
            code does, unless it has `thresholds`.
        rate: Of the dictionary's gradient, summed over the rows.
        stopping: When a code has settled.
        solver: `ista`, `fista` or `lca`.

    Reference:
        Rentzeperis et al., 2023, arXiv 2301.10002, methods.
    """
    atoms = unit_rows(dictionary)
    found = solver(x, atoms, penalty, step=step, stopping=stopping)
    if not bool(found.settled.any()):
        empty = found.codes[:0]
        return BatchResult(atoms, empty, float("nan"), found.settled, found.steps)
    rows, codes = x[found.settled], found.codes[found.settled]
    # The further step has the length of the last one: a batch that stops whole has one clock.
    last = int(found.steps.max()) - 1
    if isinstance(step, Decay):
        length, threshold = step(last), step.prox(last)
    else:
        length = threshold = step
    codes = penalty.prox(codes + length * (rows - codes @ atoms) @ atoms.T, threshold)
    residual = rows - codes @ atoms
    curvature = lipschitz(codes)
    shortened = rate > 2 / curvature
    return BatchResult(
        dictionary=atoms + (1 / curvature if shortened else rate) * codes.T @ residual,
        codes=codes,
        error=float(residual.square().mean()),
        settled=found.settled,
        steps=found.steps,
        shortened=shortened,
    )
