"""Proximal gradient methods for 1/2 ||x - r D||^2 + R(r): ISTA, FISTA, and IHT.

Each step goes along the gradient and applies the penalty's prox. Rows are independent problems that
are solved side by side in matrix products; a row that has settled is taken out, so that a few slow
rows do not hold the others. Whether to stop may also be asked of the whole batch at once, by the
largest singular value of its last change, as Rentzeperis et al. (2023) do: then all rows take
equally many steps.

A step below 1 / ||D||^2 never raises the objective, whatever the penalty. FISTA's momentum assumes
a convex one; here it starts afresh, row by row, whenever it points against the last change, which
keeps it sound for the others too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue, NonFinite, UnknownName
from sparsecraft.core.penalties import AbsTopK, Penalty, TopK
from sparsecraft.core.solvers.lipschitz import lipschitz
from sparsecraft.core.solvers.stopping import Decay, Stopping

Step = float | Literal["auto"]
State = tuple[Tensor, ...]


@dataclass(frozen=True)
class Solution:
    """What a solver found.

    Args:
        codes: (rows, components).
        steps: int64 (rows,), steps that each row took.
        settled: bool (rows,), False where the steps ran out.
    """

    codes: Tensor
    steps: Tensor
    settled: Tensor


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
            gradient's steps, while the prox keeps the first one.
        start: (rows, components), by default zeros.
        stopping: When to stop.

    Raises:
        InvalidValue: If shapes do not fit, or the step is not between 0 and 2 / ||dictionary||^2.
        NonFinite: If x or the dictionary has NaN or infinite entries.

    Example:
        >>> from sparsecraft.core.penalties import L1
        >>> x = torch.tensor([[3.0, 0.5]])
        >>> ista(x, torch.eye(2), L1(strength=1.0)).codes
        tensor([[2., 0.]])

    Reference:
        Daubechies, Defrise and De Mol, 2004, CPAM 57(11); Blumensath and Davies, 2008, JFAA 14(5).
    """
    problem = _Problem(x, dictionary, penalty, step)

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

    Arguments and errors are those of `ista`.

    Example:
        >>> from sparsecraft.core.penalties import L1
        >>> fista(torch.tensor([[3.0, 0.5]]), torch.eye(2), L1(strength=1.0)).codes
        tensor([[2., 0.]])

    Reference:
        Beck and Teboulle, 2009, SIAM J. Imaging Sci. 2(1), section 4; the restart is O'Donoghue and
        Candes, 2015, Found. Comput. Math. 15, eq. 12.
    """
    problem = _Problem(x, dictionary, penalty, step)

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


class _Problem:
    """Rows, their dictionary and penalty: checks, gradients, and the loop over rows not settled."""

    def __init__(self, x: Tensor, dictionary: Tensor, penalty: Penalty, step: Step | Decay) -> None:
        _check(x, dictionary)
        self.x, self.dictionary, self.penalty = x, dictionary, penalty
        first = step.first if isinstance(step, Decay) else step
        self.length = checked_step(first, dictionary)
        self.decay = step if isinstance(step, Decay) else None
        components, width = dictionary.shape
        # One product with the atoms' products costs less than two with the dictionary.
        self.products = dictionary @ dictionary.T if components <= 2 * width else None
        self.terms = x @ dictionary.T if self.products is not None else x

    def proximal_step(self, codes: Tensor, terms: Tensor, time: int) -> Tensor:
        """Returns prox(codes - step * gradient); `terms` are those of these rows."""
        step = self.length if self.decay is None else self.decay(time)
        if self.products is None:
            ascent = (terms - codes @ self.dictionary) @ self.dictionary.T
        else:
            ascent = terms - codes @ self.products
        return self.penalty.prox(codes + step * ascent, self.length)

    def first(self, start: Tensor | None) -> Tensor:
        """Returns the codes to begin with, zeros unless given."""
        shape = (len(self.x), len(self.dictionary))
        if start is None:
            return self.x.new_zeros(shape)
        if tuple(start.shape) != shape:
            raise InvalidValue(f"start has the shape {tuple(start.shape)}; it must be {shape}")
        return start.to(self.x)

    def solve(
        self,
        advance: Callable[[Tensor, State, int], tuple[Tensor, State]],
        codes: Tensor,
        state: State,
        stopping: Stopping,
    ) -> Solution:
        """Returns the codes once every row has settled or the steps have run out.

        Args:
            advance: Takes codes, state and the number of steps done to the next codes and state.
            codes: (rows, components), to begin with.
            state: Tensors with an entry for each row, whatever `advance` needs.
            stopping: When to stop.
        """
        steps = torch.zeros(len(codes), dtype=torch.int64, device=codes.device)
        settled = torch.zeros(len(codes), dtype=torch.bool, device=codes.device)
        found, active = codes.clone(), torch.arange(len(codes), device=codes.device)
        for time in range(stopping.max_steps):
            before = codes
            codes, state = advance(codes, state, time)
            done = stopping.settled(codes, before)
            steps[active] += 1
            if bool(done.any()):
                found[active[done]], settled[active[done]] = codes[done], True
                active, codes = active[~done], codes[~done]
                state = tuple(each[~done] for each in state)
            if not active.numel():
                break
        found[active] = codes
        return Solution(found, steps, settled)


def checked_step(step: Step, dictionary: Tensor) -> float:
    """Returns the step's length, 1 / ||dictionary||^2 for "auto".

    Raises:
        InvalidValue: If it is not above 0 and at most 2 / ||dictionary||^2.
    """
    if isinstance(step, str):
        if step != "auto":
            raise UnknownName("step", step, ["auto", "a number"])
        return 1 / lipschitz(dictionary)
    longest = 2 / lipschitz(dictionary)
    if not 0 < step <= longest:
        raise InvalidValue(
            f"step={step!r} is not allowed: beside this dictionary it must be above 0 and at most "
            f'2 / ||dictionary||^2 = {longest:.4g}, or the steps diverge. "auto" takes half of that'
        )
    return float(step)


def _check(x: Tensor, dictionary: Tensor) -> None:
    if x.dim() != 2 or dictionary.dim() != 2 or x.shape[1] != dictionary.shape[1]:
        raise InvalidValue(
            f"rows of shape {tuple(x.shape)} do not fit a dictionary of shape "
            f"{tuple(dictionary.shape)}: give (rows, d) and (components, d)"
        )
    if not x.is_floating_point() or x.dtype != dictionary.dtype:
        raise InvalidValue(
            f"rows of type {x.dtype} and a dictionary of type {dictionary.dtype} were given: both "
            "must have one floating type"
        )
    bad = int((~torch.isfinite(x)).any(1).sum())
    if bad:
        raise NonFinite(f"{bad} of {len(x)} rows have NaN or infinite entries: leave them out")
