"""Turns a run store into the record that the report draws: arms, knees, choice, problems.

Only what the store holds is read, so that a report can be redrawn anywhere, and half a comparison
has a report as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparsecraft.core.errors import StoreError
from sparsecraft.lab.choice import (
    Candidate,
    choose,
    geometric_mean,
)
from sparsecraft.lab.evidence.paired import Interval
from sparsecraft.lab.grid import CONTROL, Cell
from sparsecraft.lab.remarks import knees_of, notes_of, problems_of, without_drop
from sparsecraft.lab.runs import Arm, arms_in_order, drop_of, drop_of_run
from sparsecraft.lab.store import Run, RunStore, run_name

SPLITS = ("validation", "test")


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
        "knees": knees_of(arms, dense, facts),
        "choice": choice,
        "problems": [
            *problems_of(arms),
            *without_drop(arms, dense, facts),
            *finish.get("problems", []),
        ],
        "notes": notes_of(arms, facts, timings),
        "seconds": finish.get("seconds"),
    }


def timing_name(cell: Cell) -> str:
    """Returns the part of the store that holds an arm's timing."""
    return f"timings/{run_name(dataclasses.asdict(cell) | {'seed': 0})}"


def read_timing(store: RunStore, cell: Cell) -> dict[str, Any] | None:
    """Returns an arm's timing by batch size, or None if it was not timed yet."""
    part = store.read_part(timing_name(cell))
    return None if part is None else part["latency"]


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
    drop = drop_of(dense, arm, "test", facts)
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
        drops = {split: drop_of_run(dense, arm, split, facts) for split in SPLITS}
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


def _interval(drop: Interval) -> dict[str, Any]:
    return {
        "estimate": drop.estimate,
        "low": drop.low,
        "high": drop.high,
        "method": drop.method,
        "n": drop.n,
    }
