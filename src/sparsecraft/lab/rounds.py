"""Forms of one model timed in turns: one figure for each round, compared round by round.

A round takes every form once, one after the other, every other round in reverse order, so that a
busy moment hits all of them. What is compared is the ratio inside a round; its median is given with
the least and the greatest, which cover the true median of five rounds with 94 % confidence.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.lab.timing import repetitions
from sparsecraft.model.units import evaluating

Progress = Callable[[int, int], None]
FEWEST = 3
FASTER, SLOWER = 1.05, 0.95
"""A ratio beyond these, in all rounds on the same side of 1, is a difference; else it is noise."""


@dataclass(frozen=True)
class Rounds:
    """A figure of one form, one value for each round.

    Args:
        values: In the order of the rounds.

    Example:
        >>> Rounds((2.0, 4.0, 3.0)).over(Rounds((1.0, 1.0, 1.0))).median
        3.0
    """

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        """The least."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The greatest."""
        return max(self.values)

    def over(self, other: Rounds) -> Rounds:
        """Returns the ratios to another form of the same rounds."""
        return Rounds(tuple(a / b for a, b in zip(self.values, other.values, strict=True)))

    def to_json(self) -> dict[str, float | list[float]]:
        """Returns it as plain values."""
        summary = {"median": self.median, "low": self.low, "high": self.high}
        return {**summary, "rounds": list(self.values)}


def verdict(ratio: Rounds) -> str:
    """Returns "faster", "slower" or "none" for ratios of speed; noise counts as none.

    Example:
        >>> verdict(Rounds((1.2, 1.3, 1.1))), verdict(Rounds((1.2, 1.3, 0.9)))
        ('faster', 'none')
    """
    # Judged as it is shown, with two decimals.
    shown = round(ratio.median, 2)
    if shown >= FASTER and ratio.low > 1:
        return "faster"
    return "slower" if shown < SLOWER and ratio.high < 1 else "none"


def order(names: list[str], turn: int) -> list[str]:
    """Returns the names as they are, or reversed in every other round."""
    return names if turn % 2 else names[::-1]


def forward_in_turns(
    forms: Mapping[str, nn.Module],
    batch: Mapping[str, Tensor],
    *,
    rounds: int = 5,
    progress: Progress | None = None,
) -> dict[str, Rounds]:
    """Returns the milliseconds of one forward pass of each form.

    Args:
        forms: Name to model.
        batch: Keyword arguments of the forward pass.
        rounds: How often each is timed, at least 3; a round repeats a short pass.
        progress: Called with (turns done, turns in all).

    Raises:
        InvalidValue: If there are fewer than 3 rounds.
    """
    check_rounds(rounds)
    repeat: dict[str, int] = {}
    for name, model in forms.items():
        # The first pass allocates and picks kernels; the second says how long one takes.
        _milliseconds(model, batch, 1)
        repeat[name] = repetitions(_milliseconds(model, batch, 1) / 1000)
    found: dict[str, list[float]] = {name: [] for name in forms}
    turns = 0
    for turn in range(rounds):
        for name in order(list(forms), turn):
            found[name].append(_milliseconds(forms[name], batch, repeat[name]))
            turns += 1
            if progress:
                progress(turns, rounds * len(forms))
    return {name: Rounds(tuple(values)) for name, values in found.items()}


def check_rounds(rounds: int) -> None:
    """Raises InvalidValue if there are too few rounds for a median."""
    if rounds < FEWEST:
        raise InvalidValue(f"rounds={rounds} is too few for a median; take at least {FEWEST}")


def _milliseconds(model: nn.Module, batch: Mapping[str, Tensor], repeat: int) -> float:
    with evaluating(model), torch.inference_mode():
        begin = time.perf_counter()
        for _ in range(repeat):
            model(**batch)
        return 1000 * (time.perf_counter() - begin) / repeat
