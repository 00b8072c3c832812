"""What the report says beside the arms: knees, problems and notes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparsecraft.lab.evidence.knee import bootstrap_knee, essential_sparsity
from sparsecraft.lab.report.values import percent
from sparsecraft.lab.runs import Arm, drop_of

KNEE_TOLERANCE = 0.01


def knees_of(arms: Sequence[Arm], dense: Arm, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the knee of every curve with enough sparsities, on the validation half."""
    curves: dict[tuple[str, str], list[Arm]] = {}
    for arm in arms:
        if arm.first.kind == "sparse" and not arm.failed:
            curves.setdefault((arm.first.name, str(arm.first.pattern)), []).append(arm)
    found = []
    for (method, pattern), members in curves.items():
        points = [dense, *(arm for arm in members if drop_of(dense, arm, "validation", facts))]
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


def problems_of(arms: Sequence[Arm]) -> list[str]:
    """Returns one line for everything that did not go as asked."""
    found = [f"{arm.first.label}: {arm.failed}" for arm in arms if arm.failed]
    for arm in arms:
        if arm.first.kind == "sparse":
            notes = [note for run in arm.runs for note in run.metrics.get("notes", [])]
            found += [f"{arm.first.label}: {note}" for note in dict.fromkeys(notes)]
    versions = {str(run.environment["versions"]) for arm in arms for run in arm.runs}
    if len(versions) > 1:
        found.append(f"the runs were made with different versions: {' and '.join(versions)}")
    return found


def notes_of(
    arms: Sequence[Arm],
    facts: Mapping[str, Any],
    timings: Mapping[str, Mapping[str, Any] | None],
) -> list[str]:
    """Returns what a reader must know to read the numbers."""
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


def without_drop(arms: Sequence[Arm], dense: Arm, facts: Mapping[str, Any]) -> list[str]:
    """Returns one line for each arm whose drop cannot be stated, which keeps it from the choice."""
    return [
        f"{arm.first.label}: no drop can be stated, since its score is not finite or the dense one "
        "is 0; it takes no part in the choice"
        for arm in arms
        if not arm.failed and arm is not dense and drop_of(dense, arm, "validation", facts) is None
    ]
