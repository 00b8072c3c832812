"""Tidy rows of measurements: pairing by seed, summaries, rank correlation and Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsecraft.core.errors import InvalidValue, UnknownName


@dataclass(frozen=True)
class Row:
    """One measurement: this arm, with this seed, scored this value on this metric."""

    arm: str
    seed: int
    metric: str
    value: float


class Summary(NamedTuple):
    """The mean of a metric over an arm's seeds; `sd` is nan for a single seed."""

    arm: str
    metric: str
    mean: float
    sd: float
    n: int


def paired(
    rows: Sequence[Row], metric: str, arm_a: str, arm_b: str
) -> tuple[list[int], NDArray[np.float64]]:
    """Returns the seeds, sorted, and arm a minus arm b for each of them.

    Args:
        rows: Measurements, in any order.
        metric: The metric to compare.
        arm_a: Name of the first arm.
        arm_b: Name of the arm to subtract.

    Raises:
        UnknownName: there is no such arm, or it has no such metric.
        InvalidValue: a seed lacks its pair, or a row is double.

    Example:
        >>> rows = [Row("wanda", 0, "loss", 2.0), Row("dense", 0, "loss", 1.5)]
        >>> paired(rows, "loss", "wanda", "dense")
        ([0], array([0.5]))
    """
    values = {arm: _by_seed(rows, metric, arm) for arm in (arm_a, arm_b)}
    for arm, other in ((arm_a, arm_b), (arm_b, arm_a)):
        missing = sorted(values[other].keys() - values[arm].keys())
        if missing:
            raise InvalidValue(
                f"arm {arm!r} has no {metric!r} for seed {missing[0]}, which arm {other!r} has; "
                "run both arms with the same seeds."
            )
    seeds = sorted(values[arm_a])
    return seeds, np.array([values[arm_a][seed] - values[arm_b][seed] for seed in seeds])


def summarise(rows: Sequence[Row]) -> list[Summary]:
    """Returns mean, sample standard deviation and count by arm and metric, in order of appearance.

    Raises:
        InvalidValue: an arm has a metric twice for one seed.
    """
    result = []
    for arm, metric in dict.fromkeys((row.arm, row.metric) for row in rows):
        values = np.array(list(_by_seed(rows, metric, arm).values()))
        sd = float(values.std(ddof=1)) if values.size > 1 else math.nan
        result.append(Summary(arm, metric, float(values.mean()), sd, values.size))
    return result


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Returns Spearman's rank correlation; equal values share their mean rank.

    Args:
        x: (n,) values, n at least 2.
        y: (n,) values.

    Raises:
        InvalidValue: the lengths differ, there are fewer than 2 values, one is not finite, or all
            values on one side are equal.

    Example:
        >>> spearman([1, 2, 3], [10, 30, 20])
        0.5
    """
    ranks = []
    first, second = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if first.shape != second.shape or first.ndim != 1 or first.size < 2:
        raise InvalidValue(
            f"x has shape {first.shape} and y {second.shape}; give two lists of the same length, "
            "at least 2."
        )
    for name, values in (("x", first), ("y", second)):
        if not np.isfinite(values).all():
            raise InvalidValue(f"{name} has a value that is not finite; ranks need numbers.")
        if (values == values[0]).all():
            raise InvalidValue(f"all values of {name} are equal; they have no rank order.")
        ranks.append(_mean_ranks(values))
    a, b = (rank - rank.mean() for rank in ranks)
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def markdown(rows: Sequence[Row]) -> str:
    """Returns a Markdown table, one line for each arm, `mean ± sd (n)` for each metric.

    Raises:
        InvalidValue: an arm has a metric twice for one seed.
    """
    cells = {(row.arm, row.metric): _cell(row) for row in summarise(rows)}
    arms = dict.fromkeys(row.arm for row in rows)
    metrics = dict.fromkeys(row.metric for row in rows)
    lines = [["arm", *map(_escape, metrics)], ["---", *("---:" for _ in metrics)]]
    lines += [[_escape(arm), *(cells.get((arm, m), "") for m in metrics)] for arm in arms]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _by_seed(rows: Sequence[Row], metric: str, arm: str) -> dict[int, float]:
    """Returns the arm's value of the metric for each seed."""
    values: dict[int, float] = {}
    for row in rows:
        if row.arm != arm or row.metric != metric:
            continue
        if row.seed in values:
            raise InvalidValue(f"arm {arm!r} has {metric!r} twice for seed {row.seed}; keep one.")
        values[row.seed] = row.value
    if not values:
        metrics = {row.metric for row in rows if row.arm == arm}
        if metrics:
            raise UnknownName(f"metric of arm {arm!r}", metric, metrics)
        raise UnknownName("arm", arm, {row.arm for row in rows})
    return values


def _mean_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns (n,) ranks from 1, equal values sharing the mean of theirs."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[group]


def _cell(row: Summary) -> str:
    spread = "" if math.isnan(row.sd) else f" ± {row.sd:.2g}"
    return f"{row.mean:.4g}{spread} ({row.n})"


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
