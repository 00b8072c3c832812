"""Runs of one arm taken together, and what an arm loses against dense."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsecraft.core.errors import InvalidValue
from sparsecraft.lab.choice import STATISTICS, relative_drop
from sparsecraft.lab.evidence.paired import OVER_EXAMPLES, Interval
from sparsecraft.lab.grid import CONTROL, Cell
from sparsecraft.lab.store import Run

KINDS = ("dense", "int8", "compact", "compact-int8", "sparse")


@dataclass(frozen=True)
class Arm:
    """All runs of one arm, by seed; of a failed arm, the reason."""

    first: Cell
    runs: tuple[Run, ...]
    failed: str = ""

    def values(self, split: str) -> np.ndarray:
        """Returns (n,) values of the examples, the mean over the seeds."""
        return np.mean([run.examples[split] for run in self.runs], axis=0)

    def metric(self, split: str) -> list[float]:
        """Returns the task's number of each seed; infinite where it was not finite."""
        found = [run.metrics[split] for run in self.runs]
        return [math.inf if value is None else value for value in found]


def arms_in_order(runs: Sequence[Run], facts: Mapping[str, Any]) -> list[Arm]:
    """Returns the arms: baselines, the smaller ones, methods as they were given, controls."""
    names = {field.name for field in dataclasses.fields(Cell)}
    by_arm: dict[str, list[tuple[Cell, Run]]] = {}
    for run in runs:
        cell = Cell(**{name: run.config[name] for name in names})
        by_arm.setdefault(cell.arm, []).append((cell, run))
    arms = []
    for members in by_arm.values():
        members.sort(key=lambda pair: pair[0].seed)
        failed = next((run.metrics["failed"] for _, run in members if "failed" in run.metrics), "")
        arms.append(Arm(members[0][0], tuple(run for _, run in members), failed))
    methods, patterns = [*facts["methods"], CONTROL], facts["patterns"]

    def rank(arm: Arm) -> tuple[Any, ...]:
        cell = arm.first
        if cell.kind != "sparse":
            return (KINDS.index(cell.kind),)
        method, late = methods.index(cell.method), cell.method == CONTROL
        return (KINDS.index(cell.kind), late, method, patterns.index(cell.pattern), cell.sparsity)

    return sorted(arms, key=rank)


def drop_of(dense: Arm, arm: Arm, split: str, facts: Mapping[str, Any]) -> Interval | None:
    """Returns the drop of all seeds together, or None where it cannot be stated."""
    return paired_drop(dense.values(split), arm.values(split), facts)


def drop_of_run(dense: Arm, arm: Arm, split: str, facts: Mapping[str, Any]) -> Interval | None:
    """Returns the drop of the arm's first seed; dense loses nothing to itself."""
    values = arm.runs[0].examples[split]
    if arm.first.kind == "dense":
        return Interval(0.0, 0.0, 0.0, 0.95, len(values), OVER_EXAMPLES)
    return paired_drop(dense.values(split), values, facts)


def paired_drop(dense: np.ndarray, arm: np.ndarray, facts: Mapping[str, Any]) -> Interval | None:
    """Returns the drop from dense to the arm's values, or None where it cannot be stated."""
    with np.errstate(over="ignore"):
        if not math.isfinite(float(STATISTICS[facts["statistic"]](arm))):
            return None
    try:
        return relative_drop(dense, arm, facts["statistic"], facts["task"]["higher_is_better"])
    except InvalidValue:
        return None
