"""The quality axis, which the three charts share: the whole range, and the range near dense."""

from __future__ import annotations

from sparsecraft.lab.report.arms import Comparison, arms_of, dense_arm, higher_is_better, test_span
from sparsecraft.lab.report.scale import LOG_FROM, Scale, fitted
from sparsecraft.lab.report.values import number

# Arms that lose more than this are shown at the edge of the close view.
CLOSE = 0.12


def has_close_view(comparison: Comparison) -> bool:
    """Whether some arms fall so far below dense that a closer view of the rest helps."""
    arms, dense = arms_of(comparison), number(dense_arm(comparison), "test")
    if dense is None:
        return False
    limits = close_scale(comparison)
    tests = [test for arm in arms if (test := number(arm, "test")) is not None]
    return any(test < limits.low or test > limits.high for test in tests) and any(
        limits.low <= test <= limits.high and test != dense for test in tests
    )


def full_scale(comparison: Comparison) -> Scale:
    """Returns the quality axis that holds all arms with their intervals."""
    arms, dense = arms_of(comparison), dense_arm(comparison)
    ends = [
        end
        for arm in arms
        for end in test_span(arm, dense, higher_is_better(comparison))
        if end is not None
    ]
    # A perplexity explodes where a model breaks: only a logarithm shows both ends.
    log = not higher_is_better(comparison) and bool(ends) and 0 < LOG_FROM * min(ends) < max(ends)
    return fitted(ends, log=log)


def close_scale(comparison: Comparison) -> Scale:
    """Returns the quality axis from `CLOSE` below dense to the best arm."""
    dense = number(dense_arm(comparison), "test") or 0.0
    tests = [test for arm in arms_of(comparison) if (test := number(arm, "test")) is not None]
    room = 0.2 * CLOSE * abs(dense) or 0.1
    if higher_is_better(comparison):
        return Scale(low=dense - CLOSE * abs(dense) or -0.1, high=max([dense, *tests]) + room)
    return Scale(low=min([dense, *tests]) - room, high=dense + CLOSE * abs(dense) or 0.1)
