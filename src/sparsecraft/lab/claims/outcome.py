"""What a run of a claim found, judged and written: verdict.json, rows.csv, table.md, curve.svg."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsecraft.lab.claims.claim import Budget, Claim
from sparsecraft.lab.claims.curve import draw
from sparsecraft.lab.evidence.table import Row, markdown
from sparsecraft.lab.evidence.verdict import combine, judge
from sparsecraft.lab.machine import machine, versions
from sparsecraft.model.files import write_atomic

SCHEMA = 1


def outcome(
    claim: Claim,
    budget: Budget,
    seeds: Sequence[int],
    rows: Sequence[Row],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Returns everything that a run found, as plain values; a smoke run is not judged.

    Args:
        claim: The claim that ran.
        budget: At which budget.
        seeds: With which seeds.
        rows: What it measured.
        seconds: "wall" time of this run, and of all "cells", also those of earlier runs.
    """
    return {
        "schema": SCHEMA,
        "number": claim.number,
        "title": claim.title,
        "paper": str(claim.paper),
        "claim_version": claim.version,
        "budget": budget,
        "seeds": list(seeds),
        "scale": claim.scale,
        **_judged(claim, budget, rows),
        "tuning": claim.tuning,
        "full_scale": claim.full_scale.to_json(),
        "seconds": dict(seconds),
        "machine": machine(),
        "versions": versions(),
        "rows": [[row.arm, row.seed, row.metric, row.value] for row in rows],
    }


def write_outcome(
    claim: Claim, found: Mapping[str, Any], rows: Sequence[Row], folder: Path
) -> None:
    """Writes verdict.json, rows.csv, table.md and, where the arms lie on an axis, curve.svg.

    The verdict comes last: where it is, the other files are whole.
    """
    title = f"# {claim.number:02d} {claim.title}\n\n{claim.paper}\n\n{found['line']}\n"
    write_atomic(folder / "rows.csv", _csv(rows))
    write_atomic(folder / "table.md", f"{title}\n{markdown(rows)}\n")
    drawing = draw(rows, claim.curve) if claim.curve else None
    if drawing is not None:
        write_atomic(folder / "curve.svg", drawing)
    write_atomic(folder / "verdict.json", json.dumps(found, indent=1, allow_nan=False))


def write_scoreboard(
    found: Sequence[Mapping[str, Any]], folder: Path, budget: Budget
) -> tuple[dict[str, Any], str]:
    """Writes scoreboard.json and scoreboard.md; returns what they hold."""
    keys = ("number", "title", "paper", "claim_version", "scale", "seeds", "verdict", "line")
    board = {
        "schema": SCHEMA,
        "budget": budget,
        "claims": [{key: each[key] for key in keys} for each in found],
    }
    lines = ["| paper | claim | at this scale | |", "|---:|---|---|---|"]
    lines += [
        f"| {each['number']:02d} | {each['title']} | {each['verdict'] or 'no verdict'} | "
        f"{each['line']} |"
        for each in found
    ]
    table = "\n".join(lines)
    write_atomic(folder / "scoreboard.md", f"{table}\n")
    write_atomic(folder / "scoreboard.json", json.dumps(board, indent=1, allow_nan=False))
    return board, table


def _judged(claim: Claim, budget: Budget, rows: Sequence[Row]) -> dict[str, Any]:
    """Returns the word, the line and the differences behind them."""
    number = f"{claim.number:02d}"
    if budget == "smoke":
        return {"verdict": None, "line": f"{number} smoke: no verdict", "differences": []}
    parts = [judge(contrast.interval(rows), contrast.stated) for contrast in claim.stated]
    verdict = combine(parts)
    differences = [
        {**part.to_json(), **contrast.to_json(), "by_seed": contrast.differences(rows).tolist()}
        for part, contrast in zip(parts, claim.stated, strict=True)
    ]
    return {
        "verdict": verdict.word,
        "line": verdict.line(number, claim.scale),
        "differences": differences,
    }


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arm", "seed", "metric", "value"])
    writer.writerows([row.arm, row.seed, row.metric, repr(row.value)] for row in rows)
    return text.getvalue()
