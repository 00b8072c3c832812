"""What the report reads from an arm: one definition for the charts, the table and the words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sparsecraft.lab.report.values import number

Arm = Mapping[str, Any]
Comparison = Mapping[str, Any]

BATCHES = ("1", "32")


def arms_of(comparison: Comparison) -> list[Arm]:
    """Returns the arms in the order given."""
    return list(comparison.get("arms") or ())


def metric_of(comparison: Comparison) -> str:
    """Returns the name of the metric."""
    return str((comparison.get("task") or {}).get("metric") or "score")


def higher_is_better(comparison: Comparison) -> bool:
    """Whether a larger value of the metric is better; so unless it is said otherwise."""
    return (comparison.get("task") or {}).get("higher_is_better") is not False


def dense_arm(comparison: Comparison) -> Arm | None:
    """Returns the dense arm, or None where there is none."""
    return next((arm for arm in arms_of(comparison) if arm.get("method") == "dense"), None)


def winner_arm(comparison: Comparison) -> Arm | None:
    """Returns the arm that was chosen, or None."""
    wanted = (comparison.get("choice") or {}).get("winner")
    return next((arm for arm in arms_of(comparison) if wanted and arm.get("id") == wanted), None)


def label_of(arm: Arm) -> str:
    """Returns the arm's label, or its id."""
    return str(arm.get("label") or arm.get("id"))


def disk_bytes(arm: Arm) -> float | None:
    """Returns the bytes of the smallest form on disk, plain or packed."""
    sizes = [number(arm, "bytes", form) for form in ("plain", "packed")]
    return min((value for value in sizes if value is not None), default=None)


def sparsity_of(arm: Arm) -> float | None:
    """Returns the zeros over the targeted weights, else what is gone over all parameters."""
    targeted = number(arm, "sparsity")
    return number(arm, "sparsity_all") if targeted is None else targeted


def kl_of(arm: Arm) -> float | None:
    """Returns the mean divergence from dense over the runs, in nats, where the task measures it."""
    found = [number(run, "extra", "kl") for run in arm.get("runs") or ()]
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known and not is_dense(arm) else None


def speed_ratio(arm: Arm, batch: str) -> float | None:
    """Returns how many times as fast as dense the arm is; above 1 is faster."""
    ratio = number(arm, "latency", batch, "ratio")
    if ratio is not None:
        return ratio
    took = number(arm, "latency", batch, "ms")
    dense = number(arm, "latency", batch, "dense_ms")
    return dense / took if took and dense else None


class Span(NamedTuple):
    """An estimate with the interval around it; the ends are None where they are not known."""

    estimate: float | None
    low: float | None
    high: float | None


def drop_span(arm: Arm) -> Span:
    """Returns the drop of the test metric against dense as a fraction; positive is worse."""
    return Span(*(number(arm, "drop", key) for key in ("estimate", "low", "high")))


def test_span(arm: Arm, dense: Arm | None, higher: bool) -> Span:
    """Returns the arm's test metric with the interval of its drop, or one sd around it."""
    mean, reference, drop = number(arm, "test"), number(dense, "test"), drop_span(arm)
    if mean is None:
        return Span(None, None, None)
    if reference is not None and drop.low is not None and drop.high is not None:
        sign = -1.0 if higher else 1.0
        ends = sorted(reference + sign * abs(reference) * end for end in (drop.low, drop.high))
        return Span(mean, ends[0], ends[1])
    spread = number(arm, "sd")
    return Span(mean, None, None) if spread is None else Span(mean, mean - spread, mean + spread)


def seed_drops(arm: Arm, dense: Arm | None, higher: bool) -> list[float]:
    """Returns the relative drop of each run's test metric against dense's mean."""
    reference = number(dense, "test")
    if not reference:
        return []
    sign = 1.0 if higher else -1.0
    tests = [number(run, "test") for run in arm.get("runs") or ()]
    return [sign * (reference - test) / abs(reference) for test in tests if test is not None]


def is_dense(arm: Arm) -> bool:
    """Whether the arm is the dense reference itself."""
    return arm.get("method") == "dense"


def seeds_of(arms: Sequence[Arm]) -> list[Any]:
    """Returns the distinct seeds of the arms' runs, in order of appearance."""
    return list(
        dict.fromkeys(
            run.get("seed")
            for arm in arms
            for run in arm.get("runs") or ()
            if run.get("seed") is not None
        )
    )
