"""The figures of the headline and the cells of the table, each with the number to sort by."""

from __future__ import annotations

from typing import Any

from sparsecraft.lab.report.arms import (
    BATCHES,
    Arm,
    Comparison,
    dense_arm,
    disk_bytes,
    drop_span,
    is_dense,
    kl_of,
    label_of,
    metric_of,
    speed_ratio,
    winner_arm,
)
from sparsecraft.lab.report.markers import Series, marker
from sparsecraft.lab.report.svg import element
from sparsecraft.lab.report.text import speed_class, speed_line, speed_words
from sparsecraft.lab.report.values import (
    MISSING,
    interval,
    milliseconds,
    number,
    percent,
    quantity,
    score,
    signed,
    size,
    three_digits,
)

# A sparsity further from its request than this is marked: promise 1, never silent.
MISSED = 0.005


def tiles(comparison: Comparison) -> list[dict[str, str]]:
    """Returns the four figures of the chosen arm: quality, two speeds, bytes."""
    arm, dense = winner_arm(comparison), dense_arm(comparison)
    if arm is None or is_dense(arm):
        return []
    metric, drop = metric_of(comparison), drop_span(arm)
    held, whole = disk_bytes(arm), number(dense, "bytes", "plain")
    ends = interval(*drop).partition("[")[2]
    worse = (drop.estimate or 0.0) >= 0
    tiles = [
        {
            "name": f"{metric}, test half",
            "value": percent(abs(drop.estimate) if drop.estimate is not None else None),
            "unit": "worse than dense" if worse else "better than dense",
            "note": f"drop between {ends.rstrip(']').replace(',', ' and')} %" if ends else "",
            "tone": "even",
        }
    ]
    for batch in BATCHES:
        ratio, kind = speed_ratio(arm, batch), speed_class(arm, batch)
        took = number(arm, "latency", batch, "ms")
        was = milliseconds(number(arm, "latency", batch, "dense_ms"))
        tiles.append(
            {
                "name": f"speed at batch {batch}",
                "value": MISSING if ratio is None else f"{ratio:.2f}x",
                "unit": {"faster": "as fast as dense", "untimed": "not timed"}.get(
                    kind, "no speed-up here"
                ),
                "note": "" if took is None else f"{milliseconds(took)}, dense {was}",
                "tone": "good" if kind == "faster" else "even",
            }
        )
    tiles.append(
        {
            "name": "bytes on disk",
            "value": size(held),
            "unit": f"of {size(whole)} dense" if whole else "",
            "note": f"{percent(held / whole, 0)} of dense; {arm.get('bytes_form') or 'one file'}"
            if held is not None and whole
            else "",
            "tone": "good" if held is not None and whole and held < 0.95 * whole else "even",
        }
    )
    return tiles


def icon(look: Series) -> str:
    """Returns the marker of a series as a small SVG."""
    return element("svg", marker(look, 8.0, 8.0, 5.4), viewBox="0 0 16 16", class_="icon")


def row(comparison: Comparison, arm: Arm, look: Series) -> dict[str, Any]:
    """Returns the cells of an arm: what is shown, and the number to sort by."""
    flops, whole = number(arm, "flops", "effective"), number(arm, "flops", "dense")
    share = flops / whole if flops is not None and whole else None
    achieved = number(arm, "sparsity")
    cells = [
        _cell(percent(number(arm, "asked")), number(arm, "asked")),
        _cell(percent(achieved), achieved, kind="warn" if _missed(arm) else ""),
        _cell(percent(number(arm, "sparsity_all")), number(arm, "sparsity_all")),
        _cell(
            score(number(arm, "test")),
            number(arm, "test"),
            under=_under_score(arm),
        ),
        _drop_cell(arm),
        *_byte_cells(arm),
        _cell(
            MISSING if share is None else f"{share:.2f}x",
            share,
            under="" if flops is None else quantity(flops),
        ),
        *(_speed_cell(arm, batch) for batch in BATCHES),
    ]
    return {
        "id": str(arm.get("id")),
        "label": label_of(arm),
        "note": arm.get("note"),
        "series": look,
        "icon": icon(look),
        "control": bool(arm.get("control")),
        "winner": arm is winner_arm(comparison),
        "cells": cells,
    }


def _under_score(arm: Arm) -> str:
    """Returns the spread over seeds and the divergence from dense, where they are known."""
    spread, kl = number(arm, "sd"), kl_of(arm)
    parts = ["" if spread is None else f"± {signed(spread, 4)} sd"]
    parts.append("" if kl is None else f"KL to dense {score(kl)}")
    return ", ".join(filter(None, parts))


def _missed(arm: Arm) -> bool:
    """Whether the achieved sparsity is not what was asked."""
    asked, achieved = number(arm, "asked"), number(arm, "sparsity")
    return asked is not None and achieved is not None and abs(asked - achieved) > MISSED


def _cell(
    shown: str, value: float | None, *, under: str = "", kind: str = "", title: str = ""
) -> dict[str, Any]:
    key = "" if value is None else repr(value)
    return {"shown": shown, "sort": key, "under": under, "kind": kind, "title": title}


def _byte_cells(arm: Arm) -> list[dict[str, Any]]:
    """Returns plain and packed bytes, the name of the form under the smaller."""
    plain, packed = number(arm, "bytes", "plain"), number(arm, "bytes", "packed")
    name, held = str(arm.get("bytes_form") or ""), disk_bytes(arm)
    return [
        _cell(size(plain), plain, under=name if packed is None else ""),
        _cell(size(packed), packed, under=name if packed is not None and packed == held else ""),
    ]


def _drop_cell(arm: Arm) -> dict[str, Any]:
    drop = drop_span(arm)
    if is_dense(arm):
        return _cell("reference", 0.0, kind="quiet")
    ends = interval(*drop).partition("[")[2]
    return _cell(percent(drop.estimate), drop.estimate, under=f"[{ends}" if ends else "")


def _speed_cell(arm: Arm, batch: str) -> dict[str, Any]:
    took, rate = number(arm, "latency", batch, "ms"), number(arm, "throughput", batch)
    if took is None:
        return _cell("not timed", None, kind="quiet")
    words = speed_words(arm, batch)
    per_second = "" if rate is None else f"; {three_digits(rate)} examples each second"
    return _cell(
        milliseconds(took),
        took,
        under=words,
        kind=f"speed {speed_class(arm, batch)}",
        title=speed_line(arm, batch) + per_second,
    ) | {"extra": "" if rate is None else f"{three_digits(rate)}/s"}
