"""How long a solver's steps may be beside a dictionary, and how long they are where that is asked.

Plain proximal steps settle up to 2 / ||D||^2. Momentum carries each of them further: beyond about
4/3 of 1 / ||D||^2 it diverges, and the theory of FISTA allows 1 / ||D||^2. Neurons that compete
leak as well, at a rate of one, which bounds the step where the dictionary does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.solvers.lipschitz import lipschitz

Step = float | Literal["auto"]
ROUNDING = 1e-6
"""Relative excess that a bound, computed by others, may have."""


@dataclass(frozen=True)
class StepRule:
    """The longest step that a solver takes.

    Args:
        longest: In units of 1 / curvature.
        least: The least curvature to reckon with, beside that of the dictionary.
    """

    longest: float
    least: float = 0.0

    def curvature(self, dictionary: Tensor) -> float:
        """Returns ||dictionary||^2, or the least one."""
        return max(lipschitz(dictionary), self.least)

    def __str__(self) -> str:
        square = "||dictionary||^2"
        return f"{self.longest:g} / {f'max({square}, {self.least:g})' if self.least else square}"


PLAIN, MOMENTUM, COMPETITION = StepRule(2.0), StepRule(1.0), StepRule(2.0, least=1.0)


def checked_step(step: Step, dictionary: Tensor, rule: StepRule = PLAIN) -> float:
    """Returns the step's length, 1 / ||dictionary||^2 for "auto".

    Args:
        step: A length, or "auto".
        dictionary: (components, d).
        rule: The solver's.

    Raises:
        InvalidValue: If it is not above 0 and at most what the rule allows.
        UnknownName: If it is another word than "auto".
    """
    length, shortened = shortened_step(step, dictionary, rule)
    if shortened:
        longest = rule.longest * length
        raise InvalidValue(
            f"step={step!r} is not allowed: beside this dictionary it must be above 0 and at most "
            f'{rule} = {longest:.4g}, or the steps diverge. "auto" takes {length:.4g}'
        )
    return length


def shortened_step(step: Step, dictionary: Tensor, rule: StepRule = PLAIN) -> tuple[float, bool]:
    """Returns the step's length, "auto" where it would diverge, and whether that was so.

    Arguments and errors are those of `checked_step`, but a step that is too long is none.

    Example:
        >>> import torch
        >>> shortened_step(0.5, torch.eye(2)), shortened_step(5.0, torch.eye(2))
        ((0.5, False), (1.0, True))
    """
    check_length(step)
    curvature = rule.curvature(dictionary)
    if isinstance(step, str):
        return 1 / curvature, False
    if step > rule.longest / curvature * (1 + ROUNDING):
        return 1 / curvature, True
    return float(step), False


def check_length(step: Step) -> None:
    """Raises InvalidValue unless the step is a number above 0, or UnknownName for another word."""
    if isinstance(step, str):
        if step != "auto":
            raise UnknownName("step", step, ["auto", "a number"])
    elif not (isinstance(step, int | float) and 0 < step < math.inf):
        raise InvalidValue(
            f"step={step!r} is not allowed: it must be above 0 and at most a bound that follows "
            'from the dictionary; "auto" takes a safe length'
        )
