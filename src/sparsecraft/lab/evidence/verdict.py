"""Verdicts: what an interval says about a stated difference, in one of three words.

The difference, its direction and the smallest effect of interest are stated before the run. An
interval wholly beyond that effect in the paper's direction *holds*; one wholly on the other side of
zero *does not hold*; everything else, ties included, is *inconclusive*. From 5 seeds on, a word
other than that also needs the difference to survive swapped labels: at most 5 % of the ways to
swap the two arms within pairs may look as good.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sparsecraft.core.errors import InvalidValue
from sparsecraft.lab.evidence.paired import Interval

Word = Literal["holds", "does not hold", "inconclusive"]


@dataclass(frozen=True, kw_only=True)
class StatedDifference:
    """A difference that a paper states, written down before the first full run.

    Attributes:
        text: The statement in words.
        unit: What the difference is measured in, as printed before the number: `perplexity`.
        direction: The paper's direction: `greater` if the difference should be positive.
        smallest_effect: The smallest effect of interest, at least 0, in the same unit.
    """

    text: str
    unit: str
    direction: Literal["greater", "less"]
    smallest_effect: float = 0.0

    def __post_init__(self) -> None:
        if self.direction not in ("greater", "less"):
            raise InvalidValue(
                f"direction is {self.direction!r}; allowed are 'greater' and 'less'."
            )
        if not 0.0 <= self.smallest_effect < math.inf:
            raise InvalidValue(
                f"smallest_effect is {self.smallest_effect}; give its size, at least 0 and finite; "
                "its sign follows from the direction."
            )

    @property
    def bound(self) -> float:
        """The value that the whole interval must pass: the smallest effect with its sign."""
        if self.direction == "greater":
            return self.smallest_effect
        return -self.smallest_effect if self.smallest_effect else 0.0

    @property
    def needed(self) -> str:
        """The condition in symbols, such as `< 0`."""
        return f"{'>' if self.direction == 'greater' else '<'} {self.bound:g}"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One stated difference, the interval measured for it, and the word that follows."""

    word: Word
    interval: Interval
    stated: StatedDifference

    @property
    def smallest_detectable(self) -> float:
        """The smallest effect that the run could have seen, in the unit of the difference."""
        return self.interval.half_width + self.stated.smallest_effect

    def summary(self) -> str:
        """Returns the numbers behind the word, as printed inside the line's brackets."""
        interval, stated = self.interval, self.stated
        places = _decimals(interval, bounds=(0.0, stated.bound))
        estimate, low, high = (
            _fixed(value, places) for value in (interval.estimate, interval.low, interval.high)
        )
        sign = "" if estimate.startswith("-") else "+"
        text = f"{stated.unit} {sign}{estimate} [{low}, {high}], needed {stated.needed}"
        text += f", {interval.counted}"
        if self.word == "inconclusive":
            text += f", could have seen {_fixed(self.smallest_detectable, places)}"
        return text

    def line(self, number: int | str, scale: str) -> str:
        """Returns the verdict in one line.

        Args:
            number: The paper's number on the scoreboard.
            scale: Where it was measured, such as `0.8M parameters`.

        Example:
            >>> stated = StatedDifference(text="lower", unit="perplexity", direction="less")
            >>> interval = Interval(1.2, 0.4, 2.0, 0.95, 5, "t over seeds")
            >>> judge(interval, stated).line(28, "0.8M parameters")[:37]
            '28 at 0.8M parameters: does not hold '
        """
        return combine([self]).line(number, scale)

    def to_json(self) -> dict[str, Any]:
        """Returns the verdict as plain values; an infinite number becomes None."""
        interval, stated = self.interval, self.stated
        return {
            "word": self.word,
            "text": stated.text,
            "unit": stated.unit,
            "direction": stated.direction,
            "smallest_effect": stated.smallest_effect,
            "estimate": interval.estimate,
            "low": _finite_or_none(interval.low),
            "high": _finite_or_none(interval.high),
            "level": interval.level,
            "n": interval.n,
            "method": interval.method,
            "smallest_detectable": _finite_or_none(self.smallest_detectable),
        }


@dataclass(frozen=True, kw_only=True)
class CombinedVerdict:
    """The verdict on a claim that states several differences."""

    word: Word
    parts: tuple[Verdict, ...]

    def line(self, number: int | str, scale: str) -> str:
        """Returns the verdict in one line; several parts are divided by semicolons.

        Args:
            number: The paper's number on the scoreboard.
            scale: Where it was measured, such as `0.8M parameters`.
        """
        inside = "; ".join(part.summary() for part in self.parts)
        return f"{number} at {scale}: {self.word} ({inside})"

    def to_json(self) -> dict[str, Any]:
        """Returns the verdict and its parts as plain values."""
        return {"word": self.word, "parts": [part.to_json() for part in self.parts]}


def judge(interval: Interval, stated: StatedDifference) -> Verdict:
    """Returns what the interval says about the stated difference.

    Args:
        interval: The paired interval of the difference, in the unit of `stated`.
        stated: The difference that the paper states.

    Example:
        >>> stated = StatedDifference(text="more accurate", unit="accuracy", direction="greater")
        >>> judge(Interval(0.2, 0.1, 0.3, 0.95, 5, "t over seeds"), stated).word
        'holds'
    """
    if stated.direction == "greater":
        beyond, opposite = interval.low > stated.bound, interval.high < 0
    else:
        beyond, opposite = interval.high < stated.bound, interval.low > 0
    if not interval.survives_swapped_labels:
        beyond = opposite = False
    word: Word = "holds" if beyond else "does not hold" if opposite else "inconclusive"
    return Verdict(word=word, interval=interval, stated=stated)


def combine(verdicts: Sequence[Verdict]) -> CombinedVerdict:
    """Returns the verdict on all differences together.

    It holds only if all hold, and does not hold if any does not.

    Raises:
        InvalidValue: there is no verdict.
    """
    if not verdicts:
        raise InvalidValue("there are no verdicts to combine; a claim states at least one.")
    words = {verdict.word for verdict in verdicts}
    word: Word = "inconclusive"
    if "does not hold" in words:
        word = "does not hold"
    elif words == {"holds"}:
        word = "holds"
    return CombinedVerdict(word=word, parts=tuple(verdicts))


def _decimals(interval: Interval, bounds: tuple[float, ...]) -> int:
    """Returns the decimals that the half width deserves, and no printed end belies the verdict."""
    width = interval.half_width
    size = width if 0 < width < math.inf else abs(interval.estimate) / 10
    # One digit of the uncertainty, two where the first would be 1, 2 or 3.
    places = max(0, -math.floor(math.log10(size / 3.55))) if size else 0
    while places < 15 and not _keeps_sides(interval, bounds, places):
        places += 1
    return places


def _keeps_sides(interval: Interval, bounds: tuple[float, ...], places: int) -> bool:
    """Whether both rounded ends lie on the same side of each bound as the ends themselves."""
    return all(
        (round(end, places) > bound) == (end > bound)
        and (round(end, places) < bound) == (end < bound)
        for end in (interval.low, interval.high)
        for bound in bounds
    )


def _fixed(value: float, places: int) -> str:
    return f"{round(value, places) + 0.0:.{places}f}"  # + 0.0 turns a rounded -0.0 into 0.0


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
