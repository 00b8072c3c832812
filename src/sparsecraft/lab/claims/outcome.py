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
FAILED = "failed"
"""The word for a claim that raised; it says nothing of the paper."""


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
        **_identity(claim.number, claim.title, str(claim.paper), claim.version),
        "budget": budget,
        "seeds": list(seeds),
        "scale": claim.scale,
        **_judged(claim, budget, rows),
        "tuning": claim.tuning,
        "remark": claim.remark if budget == "small" else "",
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
    title += f"\n{remarked(found)}\n" if remarked(found) else ""
    write_atomic(folder / "rows.csv", _csv(rows))
    write_atomic(folder / "table.md", f"{title}\n{markdown(rows)}\n")
    drawing = draw(rows, claim.curve) if claim.curve else None
    if drawing is not None:
        write_atomic(folder / "curve.svg", drawing)
    write_atomic(folder / "verdict.json", json.dumps(found, indent=1, allow_nan=False))


def remarked(found: Mapping[str, Any]) -> str:
    """Returns the remark of an outcome, said to be on the run that is documented; or nothing."""
    return f"On the documented run: {found['remark']}" if found.get("remark") else ""


def failure(claim: Claim, budget: Budget, seeds: Sequence[int], reason: str) -> dict[str, Any]:
    """Returns the outcome of a claim that raised: it stands on the scoreboard with its reason."""
    return {
        **_identity(claim.number, claim.title, str(claim.paper), claim.version),
        "budget": budget,
        "seeds": list(seeds),
        "scale": claim.scale,
        "verdict": FAILED,
        "line": f"{claim.number:02d} {FAILED}: {reason}",
    }


def broken(number: int, budget: Budget, reason: str) -> dict[str, Any]:
    """Returns the outcome of a claim whose file could not even be imported."""
    return {
        **_identity(number, "", "", 0),
        "budget": budget,
        "seeds": [],
        "scale": "",
        "verdict": FAILED,
        "line": f"{number:02d} {FAILED}: {reason}",
    }


def write_scoreboard(
    found: Sequence[Mapping[str, Any]], folder: Path, budget: Budget, waiting: Sequence[int] = ()
) -> tuple[dict[str, Any], str]:
    """Writes scoreboard.json and scoreboard.md; returns what they hold.

    Args:
        found: Outcomes of the claims that are over, failed ones too.
        folder: Where the files go.
        budget: At which all ran.
        waiting: Numbers of the claims that are not over yet.
    """
    keys = ("number", "title", "paper", "claim_version", "scale", "seeds", "verdict", "line")
    ordered = sorted(found, key=lambda each: each["number"])
    board = {
        "schema": SCHEMA,
        "budget": budget,
        "claims": [
            {**{key: each[key] for key in keys}, "remark": each.get("remark", "")}
            for each in ordered
        ],
        "waiting": sorted(waiting),
    }
    lines = ["| paper | claim | at this scale | |", "|---:|---|---|---|"]
    lines += [
        f"| {each['number']:02d} | {each['title']} | {each['verdict'] or 'no verdict'} | "
        f"{_cell(' '.join(filter(None, [each['line'], remarked(each)])))} |"
        for each in ordered
    ]
    lines += [f"| {number:02d} | | not finished yet | |" for number in sorted(waiting)]
    table = "\n".join(lines)
    write_atomic(folder / "scoreboard.md", f"{table}\n")
    write_atomic(folder / "scoreboard.json", json.dumps(board, indent=1, allow_nan=False))
    return board, table


def _identity(number: int, title: str, paper: str, version: int) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "number": number,
        "title": title,
        "paper": paper,
        "claim_version": version,
    }


def _cell(text: str) -> str:
    """Returns a text as one cell of a Markdown table."""
    return text.replace("|", "\\|")


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
