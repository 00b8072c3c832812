"""What a claim is: a stated difference, a function that measures it, and its full-scale setting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sparsecraft.core.catalog import Paper
from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.lab.claims.cells import Cells
from sparsecraft.lab.evidence.paired import Interval, paired_t
from sparsecraft.lab.evidence.table import Row
from sparsecraft.lab.evidence.verdict import StatedDifference

Budget = Literal["smoke", "small", "full"]
BUDGETS: tuple[Budget, ...] = get_args(Budget)


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A stated difference, and the arms that form it.

    The difference of a seed is `constant` plus the sum of coefficient times the arm's value, so
    that a gap, a difference of gaps and a margin not used up are all written in one way.

    Args:
        stated: The difference in words, its direction and the smallest effect of interest.
        metric: The metric that is compared.
        terms: Arm to coefficient.
        constant: Added to the sum; an allowance such as "within 0.02".
        level: Confidence level of the interval.

    Example:
        >>> better = StatedDifference(text="a beats b", unit="accuracy", direction="greater")
        >>> contrast = Contrast(stated=better, metric="accuracy", terms={"a": 1, "b": -1})
        >>> rows = [Row("a", 0, "accuracy", 0.75), Row("b", 0, "accuracy", 0.5)]
        >>> contrast.differences(rows)
        array([0.25])
    """

    stated: StatedDifference
    metric: str
    terms: Mapping[str, float]
    constant: float = 0.0
    level: float = 0.95

    def differences(self, rows: Sequence[Row]) -> NDArray[np.float64]:
        """Returns (seeds,) differences, one for each seed in ascending order.

        Raises:
            UnknownName: If an arm has no such metric.
            InvalidValue: If the arms were not run with the same seeds.
        """
        values = {arm: self._by_seed(rows, arm) for arm in self.terms}
        seeds = sorted(set().union(*values.values()))
        for arm, found in values.items():
            missing = [seed for seed in seeds if seed not in found]
            if missing:
                raise InvalidValue(
                    f"arm {arm!r} has no {self.metric!r} for seed {missing[0]}, which another arm "
                    "of the difference has; run all arms with the same seeds."
                )
        sums = [
            sum(coefficient * values[arm][seed] for arm, coefficient in self.terms.items())
            for seed in seeds
        ]
        return np.array(sums) + self.constant

    def interval(self, rows: Sequence[Row]) -> Interval:
        """Returns the interval of the mean difference over the seeds."""
        return paired_t(self.differences(rows), self.level)

    def to_json(self) -> dict[str, Any]:
        """Returns what forms the difference, as plain values."""
        return {"metric": self.metric, "terms": dict(self.terms), "constant": self.constant}

    def _by_seed(self, rows: Sequence[Row], arm: str) -> dict[int, float]:
        found = {r.seed: r.value for r in rows if r.arm == arm and r.metric == self.metric}
        if not found:
            raise UnknownName(
                f"arm with {self.metric!r}", arm, {r.arm for r in rows if r.metric == self.metric}
            )
        return found


@dataclass(frozen=True, kw_only=True)
class FullScale:
    """The paper's own setting, for a user who has its model, data and machines.

    Args:
        model: Which model.
        data: Which data.
        recipe: How it is trained and scored, in words.
        methods: What to pass to `prune` or `Sparsifier`: each a dict that `catalog.restore` reads.
        hyperparameters: The numbers of the recipe by name.
    """

    model: str
    data: str
    recipe: str
    methods: tuple[Mapping[str, Any], ...]
    hyperparameters: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return {
            "model": self.model,
            "data": self.data,
            "recipe": self.recipe,
            "methods": [dict(method) for method in self.methods],
            "hyperparameters": dict(self.hyperparameters),
        }


Run = Callable[[Budget, Sequence[int], Cells], list[Row]]
"""Measures every arm that the budget asks for, with these seeds, cell by cell."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One paper's central claim at a scale that a laptop can check.

    Args:
        number: The paper's number.
        title: The claim in a few words.
        paper: Where it was published.
        version: Raised, beside the old numbers, whenever anything here that decides is changed.
        stated: The differences that decide the verdict; all must hold.
        scale: Model size and data, such as "0.02M parameters, digits".
        full_scale: The paper's own setting.
        seeds: How many seeds each budget runs.
        run: The measurement.
        curve: The metric to draw, for arms named "series, axis=value"; None draws nothing.
        tuning: What was tuned for every arm, the same for all, and on what.
        remark: What is known of why the documented run of the small budget came out as it did. It
            decides nothing, and stands below the verdict of that budget.
    """

    number: int
    title: str
    paper: Paper
    version: int
    stated: tuple[Contrast, ...]
    scale: str
    full_scale: FullScale
    seeds: Mapping[Budget, int]
    run: Run
    curve: str | None
    tuning: str
    remark: str = ""

    def __post_init__(self) -> None:
        if not self.stated:
            raise InvalidValue(f"claim {self.number} states no difference; nothing could be judged")
        missing = [budget for budget in BUDGETS if self.seeds.get(budget, 0) < 1]
        if missing:
            raise InvalidValue(f"claim {self.number} has no seeds for the budget {missing[0]!r}")


def check_budget(budget: str) -> Budget:
    """Returns the budget, or raises UnknownName."""
    for known in BUDGETS:
        if budget == known:
            return known
    raise UnknownName("budget", budget, BUDGETS)
