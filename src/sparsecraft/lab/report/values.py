"""Numbers of a comparison as text: what is missing or not finite is None, and shown as a dash."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MISSING = "–"
# A unit never starts a new line.
TIGHT = "\u00a0"


def number(record: Any, *path: str) -> float | None:
    """Returns the finite number at the path of keys, or None where there is none.

    Example:
        >>> number({"bytes": {"plain": 4}}, "bytes", "plain")
        4.0
        >>> number({"bytes": None}, "bytes", "plain") is None
        True
    """
    for key in path:
        if not isinstance(record, Mapping):
            return None
        record = record.get(key)
    if isinstance(record, bool) or not isinstance(record, int | float):
        return None
    return float(record) if math.isfinite(record) else None


def finite(value: Any) -> Any:
    """Returns nested dictionaries and lists with None in place of NaN and infinity.

    Example:
        >>> finite({"loss": [1.0, float("nan")]})
        {'loss': [1.0, None]}
    """
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def percent(fraction: float | None, digits: int = 1) -> str:
    r"""Returns a fraction as a percentage.

    Example:
        >>> percent(0.498)
        '49.8\xa0%'
    """
    return MISSING if fraction is None else f"{signed(100 * fraction, digits)}{TIGHT}%"


def signed(value: float, digits: int) -> str:
    """Returns the value with a true minus sign, and no minus where it rounds to zero."""
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def size(count: float | None) -> str:
    r"""Returns a number of bytes in kB, MB or GB of 1000.

    Example:
        >>> size(90_900_000)
        '90.9\xa0MB'
    """
    return MISSING if count is None else _scaled(count, ("B", "kB", "MB", "GB", "TB"))


def quantity(count: float | None) -> str:
    r"""Returns a count in thousands, millions or billions.

    Example:
        >>> quantity(22_700_000)
        '22.7\xa0M'
    """
    return MISSING if count is None else _scaled(count, ("", "k", "M", "G", "T")).rstrip()


def milliseconds(value: float | None) -> str:
    r"""Returns milliseconds with three digits.

    Example:
        >>> milliseconds(4.2163)
        '4.22\xa0ms'
    """
    return MISSING if value is None else f"{three_digits(value)}{TIGHT}ms"


def three_digits(value: float) -> str:
    """Returns the value with about three digits and never an exponent."""
    decimals = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return signed(value, decimals)


def score(value: float | None) -> str:
    """Returns a metric with four decimals, or four digits where it is above 10."""
    if value is None:
        return MISSING
    if abs(value) >= 1e5:
        return f"{value:.3g}"
    return signed(value, 4 if abs(value) < 10 else 2)


def interval(estimate: float | None, low: float | None, high: float | None) -> str:
    r"""Returns a fraction and its interval in percent.

    Example:
        >>> interval(0.012, 0.004, 0.02)
        '1.2\xa0% [0.4,\xa02.0]'
    """
    if estimate is None or low is None or high is None:
        return percent(estimate)
    return f"{percent(estimate)} [{signed(100 * low, 1)},{TIGHT}{signed(100 * high, 1)}]"


def plain_numbers(values: Sequence[float]) -> Callable[[float], str]:
    """Returns a writer that gives all the values the same decimals, as few as tell them apart.

    Example:
        >>> plain_numbers([0.6, 0.62])(0.6)
        '0.60'
    """
    decimals = next(
        (
            digits
            for digits in range(9)
            if all(math.isclose(round(value, digits), value, abs_tol=1e-12) for value in values)
        ),
        9,
    )
    return lambda value: signed(value, decimals)


def duration(seconds: float | None) -> str:
    """Returns a time in seconds, minutes or hours.

    Example:
        >>> duration(754)
        '12 min 34 s'
    """
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _scaled(count: float, units: tuple[str, ...]) -> str:
    power = 0
    while abs(count) >= 999.5 and power < len(units) - 1:
        count, power = count / 1000, power + 1
    text = f"{count:.0f}" if power == 0 or abs(count) >= 99.95 else f"{count:.1f}"
    return f"{text}{TIGHT}{units[power]}"
