"""Rows, their dictionary and penalty: checks, gradients, and the loop over rows not settled.

A row that has settled is taken out of the loop, so that a few slow rows do not hold the others.
That is right where the penalty counts each row for itself. A penalty that couples rows (a budget
for the batch or for a feature) sees its rows all or not at all: it needs the criterion that stops
the batch as a whole, and is refused with the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue, NonFinite
from sparsecraft.core.penalties import Penalty
from sparsecraft.core.solvers.steps import PLAIN, Step, StepRule, checked_step
from sparsecraft.core.solvers.stopping import Decay, Stopping

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


class Problem:
    """Rows (rows, d) to be coded in a dictionary (components, d) under a penalty."""

    def __init__(
        self,
        x: Tensor,
        dictionary: Tensor,
        penalty: Penalty,
        step: Step | Decay,
        rule: StepRule = PLAIN,
    ) -> None:
        check_rows(x, dictionary)
        self.x, self.dictionary, self.penalty = x, dictionary, penalty
        first = step.first if isinstance(step, Decay) else step
        self.length = checked_step(first, dictionary, rule)
        self.decay = step if isinstance(step, Decay) else None
        components, width = dictionary.shape
        # One product with the atoms' products costs less than two with the dictionary.
        self.products = dictionary @ dictionary.T if components <= 2 * width else None
        self.terms = x @ dictionary.T if self.products is not None else x

    def ascent(self, codes: Tensor, terms: Tensor) -> Tensor:
        """Returns (x - codes @ dictionary) @ dictionary.T; `terms` are those of these rows."""
        if self.products is None:
            return (terms - codes @ self.dictionary) @ self.dictionary.T
        return terms - codes @ self.products

    def proximal_step(self, codes: Tensor, terms: Tensor, time: int) -> Tensor:
        """Returns prox(codes - step * gradient); `terms` are those of these rows."""
        step = threshold = self.length
        if self.decay is not None:
            step, threshold = self.decay(time), self.decay.prox(time)
        return self.penalty.prox(codes + step * self.ascent(codes, terms), threshold)

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

        Raises:
            InvalidValue: If the penalty couples rows that would stop one by one.
        """
        check_coupling(self.penalty, stopping)
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


def check_coupling(penalty: Penalty, stopping: Stopping) -> None:
    """Raises InvalidValue if rows would stop one by one under a penalty that couples them."""
    if penalty.couples_rows and stopping.measure == "row":
        raise InvalidValue(
            f"{penalty} counts several rows together, so rows cannot stop one by one: give "
            'measure="batch", which stops them all at once, or a penalty of single rows '
            '(scope="token")'
        )


def check_rows(x: Tensor, dictionary: Tensor) -> None:
    """Raises unless x (rows, d) is finite and fits the dictionary (components, d)."""
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
