"""Proximal gradient methods for 1/2 ||x - r D||^2 + R(r): ISTA, FISTA, and IHT.

Each step goes along the gradient and applies the penalty's prox. Rows are solved side by side in
matrix products; under a penalty that counts each row for itself they are independent problems, and
a row that has settled is taken out, so that a few slow rows do not hold the others. Whether to stop
may also be asked of the whole batch at once, by the largest singular value of its last change, as
Rentzeperis et al. (2023) do: then all rows take equally many steps. A penalty that couples rows
needs that criterion.

An ISTA step of at most 1 / ||D||^2 never raises the objective, whatever the penalty; up to twice
that it settles for convex ones. FISTA's momentum is proven for convex penalties and steps of at
most 1 / ||D||^2, and may raise the objective on the way. It starts afresh, row by row, whenever it
points against the last change; for other penalties that is a heuristic.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsecraft.core.penalties import AbsTopK, Penalty, TopK
from sparsecraft.core.solvers.problem import Problem, Solution, State
from sparsecraft.core.solvers.steps import MOMENTUM, Step
from sparsecraft.core.solvers.stopping import Decay, Stopping


def objective(x: Tensor, dictionary: Tensor, codes: Tensor, penalty: Penalty) -> Tensor:
    """Returns 1/2 ||x - codes @ dictionary||^2 + R(codes), summed over all rows."""
    return (x - codes @ dictionary).square().sum() / 2 + penalty.value(codes)


@torch.no_grad()
def ista(
    x: Tensor,
    dictionary: Tensor,
    penalty: Penalty,
    *,
    step: Step | Decay = "auto",
    start: Tensor | None = None,
    stopping: Stopping | None = None,
) -> Solution:
    """Returns codes by proximal gradient steps.

    Args:
        x: (rows, d).
        dictionary: (components, d).
        penalty: With a prox for rows (rows, components).
        step: Length of the gradient's step; "auto" is 1 / ||dictionary||^2. A `Decay` shortens the
            gradient's steps, while the prox keeps the first one, unless it says otherwise.
        start: (rows, components), by default zeros.
        stopping: When to stop.

    Raises:
        InvalidValue: If shapes do not fit, the step is not above 0 and at most
            2 / ||dictionary||^2, or the penalty couples rows that stop one by one.
        NonFinite: If x or the dictionary has NaN or infinite entries.

    Example:
        >>> from sparsecraft.core.penalties import L1
        >>> x = torch.tensor([[3.0, 0.5]])
        >>> ista(x, torch.eye(2), L1(strength=1.0)).codes
        tensor([[2., 0.]])

    Reference:
        Daubechies, Defrise and De Mol, 2004, CPAM 57(11); Blumensath and Davies, 2008, JFAA 14(5).
    """
    problem = Problem(x, dictionary, penalty, step)

    def advance(codes: Tensor, state: State, time: int) -> tuple[Tensor, State]:
        return problem.proximal_step(codes, state[0], time), state

    return problem.solve(advance, problem.first(start), (problem.terms,), stopping or Stopping())


@torch.no_grad()
def fista(
    x: Tensor,
    dictionary: Tensor,
    penalty: Penalty,
    *,
    step: Step = "auto",
    start: Tensor | None = None,
    stopping: Stopping | None = None,
) -> Solution:
    """Returns codes by proximal gradient steps with momentum, which restarts row by row.

    Arguments and errors are those of `ista`, but a step must be at most 1 / ||dictionary||^2, and
    cannot decay.

    Example:
        >>> from sparsecraft.core.penalties import L1
        >>> fista(torch.tensor([[3.0, 0.5]]), torch.eye(2), L1(strength=1.0)).codes
        tensor([[2., 0.]])

    Reference:
        Beck and Teboulle, 2009, SIAM J. Imaging Sci. 2(1), section 4; the restart is O'Donoghue and
        Candes, 2015, Found. Comput. Math. 15, eq. 12.
    """
    problem = Problem(x, dictionary, penalty, step, MOMENTUM)

    def advance(codes: Tensor, state: State, time: int) -> tuple[Tensor, State]:
        terms, before, clock = state
        following = (1 + (1 + 4 * clock.square()).sqrt()) / 2
        ahead = codes + (clock - 1) / following * (codes - before)
        new = problem.proximal_step(ahead, terms, time)
        against = ((ahead - new) * (new - codes)).sum(1, keepdim=True) > 0
        return new, (terms, codes, following.masked_fill(against, 1))

    first = problem.first(start)
    state = (problem.terms, first, first.new_ones(len(first), 1))
    return problem.solve(advance, first, state, stopping or Stopping())


def iht(
    x: Tensor,
    dictionary: Tensor,
    k: int,
    *,
    non_negative: bool = False,
    step: Step = "auto",
    start: Tensor | None = None,
    stopping: Stopping | None = None,
) -> Solution:
    """Returns codes of at most k entries by gradient steps and exact selection.

    Args:
        x: (rows, d).
        dictionary: (components, d).
        k: Entries of a row that may be other than zero.
        non_negative: Whether they must be positive.
        step: As for `ista`.
        start: As for `ista`.
        stopping: As for `ista`.

    Example:
        >>> iht(torch.tensor([[3.0, 0.5]]), torch.eye(2), k=1).codes
        tensor([[3., 0.]])

    Reference:
        Blumensath and Davies, 2009, ACHA 27(3), eq. 9.
    """
    penalty = TopK(k=k) if non_negative else AbsTopK(k=k)
    return ista(x, dictionary, penalty, step=step, start=start, stopping=stopping)
