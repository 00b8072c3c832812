"""One family of errors: what was given, what is allowed, what to do, the closest match.

Results that stand, but are not what was asked for, come with a warning beside their report.
"""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable


class SparsityError(ValueError):
    """Base of every error that sparsecraft raises on purpose."""


class InvalidValue(SparsityError):
    """A value is outside what is allowed; the message says what is."""


class UnknownName(SparsityError):
    """A name is not known; the message lists the closest ones.

    Args:
        kind: What the name should have named, for example "method".
        given: The name that was given.
        known: The names that exist.
    """

    def __init__(self, kind: str, given: str, known: Iterable[str]) -> None:
        names = sorted(known)
        close = closest(given, names)
        hint = f" Did you mean {' or '.join(repr(name) for name in close)}?" if close else ""
        # The last is shown too: a word such as "all" stands behind many numbers.
        middle = ", ..." if len(names) > 21 else ""
        last = f"{middle}, {names[-1]}" if len(names) > 20 else ""
        listed = ", ".join(names[:20]) + last
        super().__init__(f"Unknown {kind} {given!r}.{hint} Known: {listed or 'none'}.")
        self.given = given
        self.known = names


class NoMatch(SparsityError):
    """A selection matches nothing in the model."""


class MissingStatistic(SparsityError):
    """A method needs something that was not given, such as calibration data."""


class NonFinite(SparsityError):
    """A weight, an activation or a loss is NaN or infinite."""


class BudgetError(SparsityError):
    """The asked budget cannot be met; the message names the layers that stand in the way."""


class OutOfMemory(SparsityError):
    """A run would not fit, or did not fit, into memory; the message says which setting would."""


class CheckpointError(SparsityError):
    """A file or directory cannot be read or written as asked; nothing was changed."""


class StoreError(SparsityError):
    """A run store cannot be used: another version, another task, or damaged."""


class MissingDependency(SparsityError):
    """An optional package is needed.

    Args:
        package: The package that could not be imported.
        extra: The extra of sparsecraft that brings it.
        purpose: What it is needed for.
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed. "
            f'Install it with: pip install "sparsecraft[{extra}]"'
        )


class ConvergenceWarning(UserWarning):
    """An iteration gave up on some rows, or could not run as asked; the message counts them."""


def warn_caller(message: str, category: type[Warning]) -> None:
    """Warns at the line outside of the library that led here, however deep the call."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == "sparsecraft":
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def closest(given: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """Returns the known names nearest to the given one, best first."""
    by_lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(given.lower(), list(by_lower), n=limit, cutoff=0.55)
    return [by_lower[name] for name in found]


def check_sparsity(sparsity: float) -> float:
    """Returns the sparsity as a float, or raises if it is not in [0, 1).

    Raises:
        InvalidValue: With the likely meaning where a percentage was given.
    """
    value = float(sparsity)
    if not 0.0 <= value < 1.0:
        hint = f" For {value:g} % write {value / 100:g}." if 2.0 <= value <= 99.9 else ""
        raise InvalidValue(
            f"sparsity={sparsity!r} is not allowed: it is the fraction of zeros, in [0, 1).{hint}"
        )
    return value


def check_density(density: float) -> float:
    """Returns the density as a float, or raises if it is not in (0, 1]."""
    value = float(density)
    if not 0.0 < value <= 1.0:
        raise InvalidValue(
            f"density={density!r} is not allowed: it is the fraction of weights kept, in (0, 1]."
        )
    return value
