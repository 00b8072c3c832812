"""Which arm to keep: within the budget for quality, the fastest, smallest or sparsest one.

The budget is met only if the upper end of the paired 95 % interval of the drop lies under it. Arms
are chosen on the validation half; what is reported of the winner comes from the test half, which
had no part in the choice. Everything here is a pure function of arrays and measured figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.lab.evidence.paired import (
    Interval,
    examples_needed,
    paired_bootstrap,
    perplexity,
)
from sparsecraft.lab.report.values import interval, percent, size

Prefer = Literal["speed", "size", "sparsity"]
Finding = Literal["within", "beyond", "undecided"]

PREFERENCES: Final = ("speed", "size", "sparsity")
STATISTICS: Final[Mapping[str, Callable[..., Any]]] = {"mean": np.mean, "perplexity": perplexity}
"""How a task makes its number from the values of the examples."""
DENSE: Final = "dense"
SAME: Final = 0.005
"""Sizes nearer than this share, and sparsities nearer than this, count as equal."""
SHOWN: Final = 3
MOST_NAMED: Final = 100
"""A number of examples beyond this many times those at hand is an extrapolation too far."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An arm that may be chosen.

    Args:
        arm: Its id.
        label: Its name in the report.
        validation: Drop on the validation half, a fraction of the dense score.
        test: The same on the test half.
        speed: Times as fast as dense, measured here; None if it was not timed.
        speed_low: Lower end of that measurement.
        speed_high: Upper end.
        bytes: Size of the smallest form on disk.
        sparsity: Zeros (or removed weights) over all parameters.
    """

    arm: str
    label: str
    validation: Interval
    test: Interval
    speed: float | None = None
    speed_low: float | None = None
    speed_high: float | None = None
    bytes: int
    sparsity: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen, and why, in plain words.

    Args:
        winner: Id of the arm, None where no arm is within the budget.
        met: Whether there is one, by the validation half.
        confirmed: Whether the test half says the same of it.
        findings: Arm id to what the validation half says.
        lines: The closing lines.
    """

    max_drop: float
    prefer: Prefer
    winner: str | None
    met: bool
    confirmed: bool
    findings: Mapping[str, Finding]
    lines: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return {
            "max_drop": self.max_drop,
            "prefer": self.prefer,
            "winner": self.winner,
            "met": self.met,
            "confirmed": self.confirmed,
            "findings": dict(self.findings),
            "lines": list(self.lines),
        }


def relative_drop(
    dense: ArrayLike, arm: ArrayLike, statistic: str, higher_is_better: bool
) -> Interval:
    """Returns the paired 95 % interval of the share of the dense score that the arm loses.

    Args:
        dense: (n,) values of the dense model, one for each example.
        arm: (n,) values of the arm on the same examples.
        statistic: A key of `STATISTICS`.
        higher_is_better: False turns the sign, so that a drop is always what is lost.

    Raises:
        InvalidValue: If the arrays differ, or the dense score is 0.

    Example:
        >>> drop = relative_drop([1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 1.0], "mean", True)
        >>> round(drop.estimate, 3)
        0.333
    """
    if statistic not in STATISTICS:
        raise UnknownName("statistic", statistic, STATISTICS)
    sign = 1.0 if higher_is_better else -1.0
    score = abs(float(STATISTICS[statistic](np.asarray(dense, dtype=float))))
    if score == 0:
        raise InvalidValue(
            "the dense model scores 0, of which no share can be lost. Is it the right model and "
            "text for this task?"
        )

    def lost(a: float, b: float) -> float:
        # A resample of few examples can score 0 where all of them do not.
        return sign * (a - b) / (abs(a) or score)

    return paired_bootstrap(dense, arm, statistic=STATISTICS[statistic], combine=lost)


def find(drop: Interval, max_drop: float) -> Finding:
    """Returns what an interval says about the budget; exactly on the budget is not under it.

    Example:
        >>> find(Interval(0.01, 0.0, 0.02, 0.95, 500, "paired bootstrap over examples"), 0.03)
        'within'
    """
    if drop.high < max_drop:
        return "within"
    return "beyond" if drop.low > max_drop else "undecided"


def choose(candidates: Sequence[Candidate], max_drop: float, prefer: Prefer = "speed") -> Choice:
    """Returns the candidate to keep.

    Among those within the budget on the validation half the best by preference wins. Two speeds
    whose measured ranges overlap count as equal; then the smaller one wins, then the better one.

    Args:
        candidates: All arms but the random controls; dense included.
        max_drop: The budget, a fraction of the dense score, in (0, 1).
        prefer: What is wanted most.

    Raises:
        InvalidValue: If there is no candidate, or the budget is out of range.
    """
    check_max_drop(max_drop)
    if prefer not in PREFERENCES:
        raise UnknownName("preference", prefer, PREFERENCES)
    if not candidates:
        raise InvalidValue("there is nothing to choose from; run at least the dense model")
    findings = {each.arm: find(each.validation, max_drop) for each in candidates}
    within = [each for each in candidates if findings[each.arm] == "within"]
    undecided = [each for each in candidates if findings[each.arm] == "undecided"]
    lines = [_count_line(candidates, within, undecided, max_drop)]
    winner = _best(within, prefer) if within else None
    lines += _undecided_lines(undecided, winner, max_drop, prefer)
    confirmed = winner is not None and find(winner.test, max_drop) == "within"
    if winner is None:
        lines.append("Nothing is chosen: no arm is within the budget.")
    else:
        lines += _winner_lines(winner, max_drop, confirmed)
    return Choice(
        max_drop=max_drop,
        prefer=prefer,
        winner=None if winner is None else winner.arm,
        met=winner is not None,
        confirmed=confirmed,
        findings=findings,
        lines=tuple(lines),
    )


def check_max_drop(max_drop: float) -> float:
    """Returns the budget, or raises if it is not in (0, 1).

    Raises:
        InvalidValue: With the likely meaning where a percentage was given as a number.
    """
    if not 0.0 < max_drop < 1.0:
        hint = (
            f" For {max_drop:g} % write {max_drop:g}% or {max_drop / 100:g}."
            if max_drop >= 1
            else ""
        )
        raise InvalidValue(
            f"max_drop={max_drop:g} is not allowed: it is a share of the dense score, in (0, 1), "
            f"such as 0.03 or 3%.{hint}"
        )
    return max_drop


def parse_share(text: str | float) -> float:
    """Returns a share given as "3%" or 0.03.

    Example:
        >>> parse_share("3%"), parse_share("0.03")
        (0.03, 0.03)
    """
    if isinstance(text, int | float):
        return float(text)
    cleaned = text.strip()
    try:
        return float(cleaned.removesuffix("%")) / (100 if cleaned.endswith("%") else 1)
    except ValueError:
        raise InvalidValue(f"{text!r} is not a share: write 3% or 0.03") from None


def _best(within: Sequence[Candidate], prefer: Prefer) -> Candidate:
    """Returns the best by preference; ties go to the smaller one, then to the better one."""
    if prefer == "size":
        return _smallest(within)
    if prefer == "sparsity":
        sparsest = max(each.sparsity for each in within)
        return _smallest([each for each in within if each.sparsity >= sparsest - SAME])
    fastest = max(within, key=lambda each: each.speed or 0.0)
    bar = fastest.speed_low if fastest.speed_low is not None else fastest.speed or 0.0
    return _smallest([each for each in within if (each.speed_high or each.speed or 0.0) >= bar])


def _smallest(equals: Sequence[Candidate]) -> Candidate:
    """Returns the best on validation among those of the least size, but for a few bytes."""
    least = min(each.bytes for each in equals)
    small = [each for each in equals if each.bytes <= least * (1 + SAME)]
    return min(small, key=lambda each: each.validation.estimate)


def _count_line(
    candidates: Sequence[Candidate],
    within: Sequence[Candidate],
    undecided: Sequence[Candidate],
    max_drop: float,
) -> str:
    others = len(candidates) - len(within) - len(undecided)
    return (
        f"Budget: a drop under {percent(max_drop)} (upper end of the paired 95 % interval, "
        f"{candidates[0].validation.n} validation examples). Within it: {len(within)} of "
        f"{len(candidates)} arms, beyond it {others}, undecided {len(undecided)}."
    )


def _undecided_lines(
    undecided: Sequence[Candidate], winner: Candidate | None, max_drop: float, prefer: Prefer
) -> list[str]:
    """Returns one line for each arm that would have won if the data had spoken for it."""
    rivals = [each for each in undecided if winner is None or _best([each, winner], prefer) is each]
    rivals.sort(key=lambda each: each.validation.estimate)
    return [_undecided_line(each, max_drop) for each in rivals[:SHOWN]]


def _undecided_line(each: Candidate, max_drop: float) -> str:
    drop = each.validation
    needed = examples_needed(drop, max_drop)
    if needed is None:
        about = "no number of examples can be named: the drop equals the budget"
    elif needed > MOST_NAMED * drop.n:
        about = (
            "the drop lies so near the budget that over "
            f"{MOST_NAMED * drop.n:,} validation examples would be needed"
        )
    else:
        about = f"about {needed:,} validation examples would decide"
    return (
        f"The data cannot decide on {each.label}: validation drop "
        f"{interval(drop.estimate, drop.low, drop.high)}; {about} ({drop.n} here)."
    )


def _winner_lines(winner: Candidate, max_drop: float, confirmed: bool) -> list[str]:
    drop = winner.test
    if winner.arm == DENSE:
        return [f"Keep dense: {size(winner.bytes)}; no other arm within the budget is better."]
    speed = "not timed" if winner.speed is None else f"{winner.speed:.2f}x the speed of dense here"
    lines = [
        f"Keep {winner.label}: {speed}, {size(winner.bytes)}, test drop "
        f"{interval(drop.estimate, drop.low, drop.high)} over {drop.n} examples."
    ]
    if winner.speed is not None and winner.speed_low is not None and winner.speed_low <= 1.0:
        lines.append("No speed-up was measured here.")
    if not confirmed:
        lines.append(
            f"The test half does not confirm it: the upper end there is {percent(drop.high)}, "
            f"not under {percent(max_drop)}."
        )
    return lines


def geometric_mean(ratios: Sequence[float]) -> float:
    """Returns the geometric mean, which treats 2x and 0.5x alike."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios))
