"""The handbook's table of a method and its controls: report.json, report.html, printed words."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sparsecraft.core import catalog
from sparsecraft.lab.cost import SIMULATED
from sparsecraft.lab.evidence.paired import paired_t
from sparsecraft.lab.machine import machine, versions
from sparsecraft.lab.report.training_page import render
from sparsecraft.lab.report.values import (
    MISSING,
    duration,
    finite,
    number,
    percent,
    quantity,
    score,
    size,
    three_digits,
)
from sparsecraft.lab.training_runs import COMPACT, METHOD, Arm, Plan
from sparsecraft.model.files import write_atomic

SCHEMA = 1
Records = Sequence[Mapping[str, Any]]


def summarise(
    plan: Plan,
    arms: Sequence[Arm],
    records: Mapping[str, Records],
    notes: Sequence[str],
    latency: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns the whole report as plain values.

    Args:
        plan: What was trained.
        arms: The method first.
        records: By arm id, one for each seed, in the order of the seeds.
        notes: What the reader must know of the controls.
        latency: See `measured_latency`; None where it was not measured.
    """
    arms, records = _with_compact(plan, arms, records)
    # A smaller model that trained on is what the method gives in the end.
    final = COMPACT if COMPACT in records and plan.removal.finetune_steps else METHOD
    mine = [record["test"] for record in records[final]]
    return finite(
        {
            "schema": SCHEMA,
            "task": {
                "name": plan.task.name,
                "metric": plan.task.metric,
                "higher_is_better": plan.task.higher_is_better,
                "description": plan.task.description,
            },
            "method": catalog.describe(plan.method),
            "paper": str(plan.method.info.paper),
            "settings": {**asdict(plan.settings), "learning_rate": plan.settings.peak},
            "removal": asdict(plan.removal),
            "seeds": list(plan.seeds),
            "arms": [
                {
                    "role": arm.role,
                    "label": arm.label,
                    "method": None if arm.method is None else catalog.describe(arm.method),
                    "runs": list(records[arm.id]),
                }
                for arm in arms
            ],
            "differences": [
                {
                    "against": arm.label,
                    **_difference(mine, [record["test"] for record in records[arm.id]]),
                }
                for arm in arms
                if arm.role not in (METHOD, COMPACT)
            ],
            "differences_of": next(arm.label for arm in arms if arm.role == final),
            "latency": latency,
            "notes": [*_method_notes(records), *notes],
            "runtime": SIMULATED,
            "machine": machine(),
            "versions": versions(),
        }
    )


def write_report(found: Mapping[str, Any], out: Path) -> tuple[Path, Path]:
    """Writes report.json and report.html; returns their paths."""
    paths = out / "report.json", out / "report.html"
    write_atomic(paths[0], json.dumps(found, indent=1, allow_nan=False, default=str) + "\n")
    write_atomic(paths[1], render(found, table(found)))
    return paths


def table(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns the heads and the rows of the handbook's table, in words."""
    metric = found["task"]["metric"]
    columns = _columns(metric)
    classifies = any("nll" in run for arm in found["arms"] for run in arm["runs"])
    if not classifies:
        for head in ("NLL", "ECE", "worst class"):
            del columns[head]
    rows = [[arm["label"], *(w(arm["runs"]) for w in columns.values())] for arm in found["arms"]]
    return ["training", *columns], rows


def _columns(metric: str) -> dict[str, Callable[[Records], str]]:
    return {
        metric: lambda runs: _spread(runs, "test", write=score),
        "NLL": lambda runs: _spread(runs, "nll", write=score),
        "ECE": lambda runs: _spread(runs, "ece", write=score),
        "worst class": lambda runs: _mean(runs, "worst_class", write=score),
        "parameters": lambda runs: _mean(runs, "parameters", write=quantity),
        "not zero": lambda runs: _mean(runs, "kept", write=quantity),
        "zeros asked": lambda runs: _mean(runs, "asked", write=percent),
        "zeros achieved": lambda runs: _mean(runs, "sparsity", write=percent),
        "on a path": lambda runs: _mean(runs, "masks", "effective_density", write=percent),
        "training FLOPs": lambda runs: _mean(runs, "flops", "relative", write=_times),
        "trainings": lambda runs: _mean(runs, "trainings", write=lambda v: f"{v:.0f}"),
        "processes": lambda runs: _mean(runs, "processes", write=lambda v: f"{v:.0f}"),
        "peak memory": lambda runs: _most(runs, "peak_bytes"),
        "stored": lambda runs: _most(runs, "stored_bytes"),
        "time": lambda runs: _mean(runs, "seconds", write=duration),
        "ever active": lambda runs: _mean(runs, "masks", "itop", write=percent),
        "like the first mask": lambda runs: _mean(runs, "masks", "jaccard", write=percent),
    }


def _with_compact(
    plan: Plan, arms: Sequence[Arm], records: Mapping[str, Records]
) -> tuple[list[Arm], dict[str, Records]]:
    """Returns arms and records with the smaller model after the method, if all seeds have one."""
    every = [record.get("compact") for record in records[METHOD]]
    smaller = [record for record in every if record]
    found = dict(records)
    if len(smaller) < len(every):
        return list(arms), found
    found[COMPACT] = smaller
    more = plan.removal.finetune_steps
    label = f"{arms[0].label}, made smaller" + (f", {more} steps more" if more else "")
    return [arms[0], Arm(COMPACT, label, plan.method, plan.settings), *arms[1:]], found


def _values(runs: Records, *path: str) -> list[float]:
    found = [number(run, *path) for run in runs]
    return [value for value in found if value is not None]


def _mean(runs: Records, *path: str, write: Callable[[float], str]) -> str:
    values = _values(runs, *path)
    return write(statistics.fmean(values)) if values else MISSING


def _spread(runs: Records, *path: str, write: Callable[[float], str]) -> str:
    values = _values(runs, *path)
    text = _mean(runs, *path, write=write)
    return f"{text} ± {write(statistics.stdev(values))}" if len(values) > 1 else text


def _most(runs: Records, *path: str) -> str:
    values = _values(runs, *path)
    return size(max(values)) if values else MISSING


def _times(value: float) -> str:
    return f"{three_digits(value)}x"


def _difference(mine: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Returns the paired difference over the seeds, with an interval where one can be formed.

    One seed says nothing of the spread. Nor do differences that are all equal: their interval
    would have no width, which happens by chance where few examples are counted.
    """
    differences = [a - b for a, b in zip(mine, theirs, strict=True)]
    found = paired_t(differences)
    spread = max(differences) - min(differences) > 1e-12
    return {
        "estimate": found.estimate,
        "low": found.low if spread else None,
        "high": found.high if spread else None,
        "n": found.n,
    }


def _method_notes(records: Mapping[str, Records]) -> list[str]:
    """Returns the notes of the runs, each once."""
    return list(
        dict.fromkeys(note for runs in records.values() for run in runs for note in run["notes"])
    )
