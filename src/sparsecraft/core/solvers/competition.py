"""Sparse codes by neurons that compete: the locally competitive algorithm (LCA).

Each neuron has a potential u, driven by the row and inhibited by the active neurons whose atoms
resemble its own: tau du/dt = D x - u - (D D^T - I) a, with a = threshold(u) (Rozell et al., 2008).
At rest u - a is the gradient's ascent, so that a minimises the same objective as ISTA's codes do
for a convex penalty. Here the threshold is the prox of any penalty at a step of one, and time runs
in Euler's steps whose length follows from the dictionary.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sparsecraft.core.penalties import Penalty
from sparsecraft.core.solvers.problem import Problem, Solution, State
from sparsecraft.core.solvers.steps import COMPETITION, Step
from sparsecraft.core.solvers.stopping import Stopping


@torch.no_grad()
def lca(
    x: Tensor,
    dictionary: Tensor,
    penalty: Penalty,
    *,
    step: Step = "auto",
    start: Tensor | None = None,
    stopping: Stopping | None = None,
) -> Solution:
    """Returns codes at which potentials that inhibit one another come to rest.

    Args:
        x: (rows, d).
        dictionary: (components, d).
        penalty: Its prox at a step of one is the threshold; CEL0's is then the hard one for atoms
            of norm one.
        step: Of time, in units of tau; "auto" is 1 / max(||dictionary||^2, 1).
        start: (rows, components), codes at whose potentials to begin; by default all rest at zero.
        stopping: When the potentials have settled. These are larger than the codes, and change
            less beside their size: ask for a smaller tolerance than of `ista`.

    Raises:
        InvalidValue: If shapes do not fit, the step is not above 0 and at most twice "auto", or
            the penalty couples rows that stop one by one.
        NonFinite: If x or the dictionary has NaN or infinite entries.

    Example:
        >>> from sparsecraft.core.penalties import L1
        >>> lca(torch.tensor([[3.0, 0.5]]), torch.eye(2), L1(strength=1.0)).codes
        tensor([[2., 0.]])

    Reference:
        Rozell, Johnson, Baraniuk and Olshausen, 2008, Neural Computation 20(10).
    """
    problem = Problem(x, dictionary, penalty, step, COMPETITION)

    def advance(potentials: Tensor, state: State, time: int) -> tuple[Tensor, State]:
        codes = penalty.prox(potentials, 1.0)
        drive = codes + problem.ascent(codes, state[0])
        return potentials + problem.length * (drive - potentials), state

    codes = problem.first(start)
    potentials = codes if start is None else codes + problem.ascent(codes, problem.terms)
    found = problem.solve(advance, potentials, (problem.terms,), stopping or Stopping())
    return replace(found, codes=penalty.prox(found.codes, 1.0))
