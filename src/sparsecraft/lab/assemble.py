"""Turns a run store into the record that the report draws: arms, knees, choice, problems.

Only what the store holds is read, so that a report can be redrawn anywhere, and half a comparison
has a report as well.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsecraft.core.errors import InvalidValue, StoreError
from sparsecraft.lab.choice import (
    STATISTICS,
    Candidate,
    choose,
    geometric_mean,
    relative_drop,
)
from sparsecraft.lab.evidence.knee import bootstrap_knee, essential_sparsity
from sparsecraft.lab.evidence.paired import OVER_EXAMPLES, Interval
from sparsecraft.lab.grid import CONTROL, Cell
from sparsecraft.lab.report.values import percent
from sparsecraft.lab.store import Run, RunStore, run_name

KINDS = ("dense", "int8", "compact", "compact-int8", "sparse")
SPLITS = ("validation", "test")
KNEE_TOLERANCE = 0.01


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


def assemble(store: RunStore) -> dict[str, Any]:
    """Returns the record of a comparison, finished or not, as the report reads it.

    Raises:
        StoreError: If the store holds no run of the dense model yet.
    """
    facts = store.read_part("facts")
    if facts is None:
        raise StoreError(f"{store.directory} holds no results yet: run the comparison first")
    arms = arms_in_order(store.runs(), facts)
    dense = next((arm for arm in arms if arm.first.kind == "dense" and not arm.failed), None)
    if dense is None:
        raise StoreError(f"{store.directory} has no dense run yet: run the comparison first")
    finish = store.read_part("finish") or {}
    timings = {arm.first.arm: read_timing(store, arm.first) for arm in arms}
    choice = choose(
        _candidates(arms, dense, facts, timings), facts["max_drop"], facts["prefer"]
    ).to_json()
    if finish.get("saved_arm") == choice["winner"] and finish.get("saved_to"):
        choice["saved_to"] = finish["saved_to"]
        choice["lines"] += finish.get("saved_lines", [])
    environment = dense.runs[0].environment
    return {
        "version": 1,
        "title": f"{facts['model']['name']} on {facts['task']['name']}",
        "command": facts["command"],
        "created": facts["created"],
        "directory": store.directory.name,
        "task": facts["task"] | {"examples": {split: len(dense.values(split)) for split in SPLITS}},
        "model": facts["model"],
        "targets": facts["targets"],
        **environment,
        "arms": [_arm(arm, dense, facts, timings[arm.first.arm]) for arm in arms],
        "knees": _knees(arms, dense, facts),
        "choice": choice,
        "problems": [
            *_problems(arms),
            *_without_drop(arms, dense, facts),
            *finish.get("problems", []),
        ],
        "notes": _notes(arms, facts, timings),
        "seconds": finish.get("seconds"),
    }


def timing_name(cell: Cell) -> str:
    """Returns the part of the store that holds an arm's timing."""
    return f"timings/{run_name(dataclasses.asdict(cell) | {'seed': 0})}"


def read_timing(store: RunStore, cell: Cell) -> dict[str, Any] | None:
    """Returns an arm's timing by batch size, or None if it was not timed yet."""
    part = store.read_part(timing_name(cell))
    return None if part is None else part["latency"]


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


def _arm(
    arm: Arm, dense: Arm, facts: Mapping[str, Any], timing: Mapping[str, Any] | None
) -> dict[str, Any]:
    cell = arm.first
    shown: dict[str, Any] = {
        "id": cell.arm,
        "label": cell.label,
        "method": cell.name,
        "pattern": cell.pattern,
        "control": cell.is_control,
    }
    if arm.failed:
        return shown | {"runs": [], "note": arm.failed, "deterministic": True}
    metrics = arm.runs[0].metrics
    tests = arm.metric("test")
    drop = _drop(dense, arm, "test", facts)
    notes = [note for run in arm.runs for note in run.metrics.get("notes", [])]
    return shown | {
        "asked": metrics.get("asked"),
        "sparsity": metrics.get("sparsity"),
        "sparsity_all": metrics["sparsity_all"],
        "deterministic": metrics.get("deterministic", cell.kind in ("dense", "int8")),
        "runs": [_run(run) for run in arm.runs],
        "validation": float(np.mean(arm.metric("validation"))),
        "test": float(np.mean(tests)),
        "sd": float(np.std(tests, ddof=1)) if len(tests) > 1 else None,
        "drop": None if drop is None else _interval(drop),
        "bytes": metrics["bytes"],
        "bytes_form": metrics["bytes_form"],
        "flops": metrics["flops"],
        "latency": timing,
        "throughput": _throughput(timing),
        "layers": metrics.get("layers", []),
        "note": "; ".join(dict.fromkeys(notes)),
    }


def _run(run: Run) -> dict[str, Any]:
    return {
        "seed": run.config["seed"],
        **{split: run.metrics[split] for split in SPLITS},
        "extra": run.metrics["extra"],
        "seconds": run.metrics["seconds"],
    }


def _drop(dense: Arm, arm: Arm, split: str, facts: Mapping[str, Any]) -> Interval | None:
    """Returns the paired drop, or None where a score is not finite."""
    return _paired(dense.values(split), arm.values(split), facts)


def _drop_of_run(dense: Arm, arm: Arm, split: str, facts: Mapping[str, Any]) -> Interval | None:
    """Returns the drop of the arm's first seed; dense loses nothing to itself."""
    values = arm.runs[0].examples[split]
    if arm.first.kind == "dense":
        return Interval(0.0, 0.0, 0.0, 0.95, len(values), OVER_EXAMPLES)
    return _paired(dense.values(split), values, facts)


def _paired(dense: np.ndarray, arm: np.ndarray, facts: Mapping[str, Any]) -> Interval | None:
    with np.errstate(over="ignore"):
        if not math.isfinite(float(STATISTICS[facts["statistic"]](arm))):
            return None
    try:
        return relative_drop(dense, arm, facts["statistic"], facts["task"]["higher_is_better"])
    except InvalidValue:
        if float(np.mean(dense)) == 0:
            raise
        return None


def _candidates(
    arms: Sequence[Arm],
    dense: Arm,
    facts: Mapping[str, Any],
    timings: Mapping[str, Mapping[str, Any] | None],
) -> list[Candidate]:
    """Returns what may be chosen: every arm but the random ones, by its first seed's run."""
    found = []
    for arm in arms:
        if arm.failed or arm.first.method == CONTROL:
            continue
        run = arm.runs[0]
        drops = {split: _drop_of_run(dense, arm, split, facts) for split in SPLITS}
        if drops["validation"] is None or drops["test"] is None:
            continue
        sizes = [size for size in run.metrics["bytes"].values() if size is not None]
        several = f" (seed {arm.first.seed})" if len(arm.runs) > 1 else ""
        found.append(
            Candidate(
                arm=arm.first.arm,
                label=arm.first.label + several,
                validation=drops["validation"],
                test=drops["test"],
                bytes=min(sizes),
                sparsity=run.metrics["sparsity_all"],
                **_speed(timings[arm.first.arm]),
            )
        )
    return found


def _speed(timing: Mapping[str, Any] | None) -> dict[str, float]:
    """Returns how many times as fast as dense, over the batch sizes, with its range."""
    if not timing:
        return {}
    keys = {"speed": "ratio", "speed_low": "ratio_low", "speed_high": "ratio_high"}
    return {
        name: geometric_mean([batch[key] for batch in timing.values()])
        for name, key in keys.items()
    }


def _throughput(timing: Mapping[str, Any] | None) -> dict[str, float] | None:
    if not timing:
        return None
    return {size: 1000 * int(size) / batch["ms"] for size, batch in timing.items()}


def _knees(arms: Sequence[Arm], dense: Arm, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the knee of every curve with enough sparsities, on the validation half."""
    curves: dict[tuple[str, str], list[Arm]] = {}
    for arm in arms:
        if arm.first.kind == "sparse" and not arm.failed:
            curves.setdefault((arm.first.name, str(arm.first.pattern)), []).append(arm)
    found = []
    for (method, pattern), members in curves.items():
        points = [dense, *(arm for arm in members if _drop(dense, arm, "validation", facts))]
        if len(points) >= 4:
            found.append({"method": method, "pattern": pattern, **_knee(points, facts)})
    return found


def _knee(points: Sequence[Arm], facts: Mapping[str, Any]) -> dict[str, Any]:
    ratios = [0.0, *(float(arm.first.sparsity or 0) for arm in points[1:])]
    values = np.stack([arm.values("validation") for arm in points])
    # A perplexity explodes and would bend at the last point: its logarithm, the loss, is used.
    by_loss = facts["statistic"] == "perplexity"
    higher, relative = (False, False) if by_loss else (facts["task"]["higher_is_better"], True)
    knee = essential_sparsity(ratios, values.mean(1), KNEE_TOLERANCE, higher, relative)
    spread = bootstrap_knee(ratios, values, np.mean, KNEE_TOLERANCE, higher, relative)
    ratio = knee.slope_ratio
    return {
        "knee": knee.sparsity,
        "low": spread.low,
        "high": spread.high,
        "has_knee": knee.has_knee,
        "slope_before": knee.slope_before,
        "slope_after": knee.slope_after,
        "ratio": ratio if math.isfinite(ratio) else None,
        "text": knee.describe(),
    }


def _problems(arms: Sequence[Arm]) -> list[str]:
    found = [f"{arm.first.label}: {arm.failed}" for arm in arms if arm.failed]
    for arm in arms:
        if arm.first.kind == "sparse":
            notes = [note for run in arm.runs for note in run.metrics.get("notes", [])]
            found += [f"{arm.first.label}: {note}" for note in dict.fromkeys(notes)]
    versions = {str(run.environment["versions"]) for arm in arms for run in arm.runs}
    if len(versions) > 1:
        found.append(f"the runs were made with different versions: {' and '.join(versions)}")
    return found


def _notes(
    arms: Sequence[Arm],
    facts: Mapping[str, Any],
    timings: Mapping[str, Mapping[str, Any] | None],
) -> list[str]:
    notes = [
        "Drops are shares of the dense score; their 95 % intervals resample the examples, the "
        "same ones for both models.",
        "Pruned models with zeros run the dense kernels: their times are those of simulated "
        "sparsity. Effective FLOPs are what a perfect sparse kernel would need.",
        "Speed is the geometric mean over the batch sizes; ratios within each other's range "
        "count as equal.",
    ]
    dense = timings.get("dense")
    for size, batch in (dense or {}).items():
        low, high = batch["ratio_low"], batch["ratio_high"]
        notes.append(
            f"Noise of the timing at batch {size}: dense beside itself came out at "
            f"{batch['ratio']:.2f}x, from {low:.2f}x to {high:.2f}x over {batch['rounds']} rounds."
        )
    if any(len(arm.runs) > 1 for arm in arms):
        notes.append("Of an arm with several seeds the first is the one that is chosen and saved.")
    notes.append(
        f"Knees are where the validation score first falls by {percent(KNEE_TOLERANCE)} of dense."
    )
    return [*notes, *facts.get("notes", [])]


def _without_drop(arms: Sequence[Arm], dense: Arm, facts: Mapping[str, Any]) -> list[str]:
    """Returns one line for each arm whose drop cannot be stated, which keeps it from the choice."""
    return [
        f"{arm.first.label}: no drop can be stated, since its score is not finite or the dense one "
        "is 0 in some resample of the examples; it takes no part in the choice"
        for arm in arms
        if not arm.failed and arm is not dense and _drop(dense, arm, "validation", facts) is None
    ]


def _interval(drop: Interval) -> dict[str, Any]:
    return {
        "estimate": drop.estimate,
        "low": drop.low,
        "high": drop.high,
        "method": drop.method,
        "n": drop.n,
    }
