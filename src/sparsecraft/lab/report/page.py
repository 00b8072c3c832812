"""The HTML page: what the template shows, already in words."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

from sparsecraft.core.errors import MissingDependency
from sparsecraft.lab.report import strips
from sparsecraft.lab.report.arms import (
    BATCHES,
    Arm,
    Comparison,
    arms_of,
    is_dense,
    label_of,
    seeds_of,
    winner_arm,
)
from sparsecraft.lab.report.cells import MISSED, icon, row, tiles
from sparsecraft.lab.report.markers import series_key, series_of
from sparsecraft.lab.report.quality import has_close_view
from sparsecraft.lab.report.text import (
    headline,
    speed_summary,
)
from sparsecraft.lab.report.tradeoff import figures
from sparsecraft.lab.report.values import (
    MISSING,
    duration,
    finite,
    interval,
    number,
    percent,
    quantity,
    score,
    three_digits,
)


def render_page(comparison: Comparison) -> str:
    """Returns the whole report as one HTML page.

    Raises:
        MissingDependency: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment
    except ModuleNotFoundError as error:
        raise MissingDependency("jinja2", "lab", "The HTML report") from error
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        percent=lambda value: percent(number(value)),
        quantity=lambda value: quantity(number(value)),
        duration=lambda value: duration(number(value)),
    )
    template = environment.from_string(_file("template.html.j2"))
    return template.render(
        css=_file("report.css"), js=_file("report.js"), **_context(finite(comparison))
    )


def _file(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _context(comparison: Comparison) -> dict[str, Any]:
    arms, looks = arms_of(comparison), series_of(arms_of(comparison))
    return {
        "comparison": comparison,
        "task": comparison.get("task") or {},
        "model": comparison.get("model") or {},
        "choice": comparison.get("choice") or {},
        "headline": headline(comparison),
        "tiles": tiles(comparison),
        "speed_lines": speed_summary(comparison),
        "figures": figures(comparison),
        "close_view": has_close_view(comparison),
        "legend": [{"look": look, "icon": icon(look)} for look in looks.values()],
        "batches": BATCHES,
        "rows": [row(comparison, arm, looks[series_key(arm)]) for arm in arms],
        "knees": [_knee(knee) for knee in comparison.get("knees") or ()],
        "knee_strip": strips.knee_strip(comparison),
        "forest": strips.forest(comparison),
        "heat": strips.heat(comparison),
        "layered": _layered(comparison),
        "targets": _targets(comparison),
        "seeds": seeds_of(arms),
        "evidence": _evidence(arms),
    }


def _knee(knee: Mapping[str, Any]) -> dict[str, str]:
    ratio = number(knee, "ratio")
    return {
        "name": series_of([knee])[series_key(knee)].name,
        "knee": interval(*(number(knee, key) for key in ("knee", "low", "high"))),
        "found": "yes" if knee.get("has_knee") else "no",
        "before": score(number(knee, "slope_before")),
        "after": score(number(knee, "slope_after")),
        "ratio": MISSING if ratio is None else f"{three_digits(ratio)}x",
        "text": str(knee.get("text") or ""),
    }


def _layered(comparison: Comparison) -> list[dict[str, Any]]:
    """Returns the arms with known layers, one marked as open: chosen, or no control."""
    arms = [arm for arm in arms_of(comparison) if arm.get("layers")]
    order = sorted(arms, key=lambda arm: (arm is not winner_arm(comparison), arm.get("control")))
    first = order[0] if order else None
    return [
        {
            "id": str(arm.get("id")),
            "label": label_of(arm),
            "open": arm is first,
            "layers": [_layer(layer) for layer in arm["layers"]],
            "missed": sum(_layer(layer)["missed"] for layer in arm["layers"]),
        }
        for arm in arms
    ]


def _layer(layer: Mapping[str, Any]) -> dict[str, Any]:
    asked, achieved = number(layer, "asked"), number(layer, "achieved")
    known = asked is not None and achieved is not None
    return {
        "name": str(layer.get("name")),
        "shape": _shape(layer.get("shape")),
        "asked": asked,
        "achieved": achieved,
        "missed": known and abs((asked or 0.0) - (achieved or 0.0)) > MISSED,
    }


def _shape(shape: Any) -> str:
    return " × ".join(map(str, shape)) if isinstance(shape, list | tuple) else str(shape or "")


def _targets(comparison: Comparison) -> dict[str, Any]:
    """Returns what was targeted, and what was left out, grouped by the reason."""
    targets = list(comparison.get("targets") or ())
    total = sum(number(target, "numel") or 0.0 for target in targets)
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for target in targets:
        if not target.get("targeted"):
            groups.setdefault(str(target.get("reason") or "no reason given"), []).append(target)
    taken = [target for target in targets if target.get("targeted")]
    return {
        "count": len(targets),
        "taken": _group("targeted", taken, total),
        "left": [_group(reason, members, total) for reason, members in groups.items()],
    }


def _group(reason: str, members: list[Mapping[str, Any]], total: float) -> dict[str, Any]:
    held = sum(number(member, "numel") or 0.0 for member in members)
    return {
        "reason": reason,
        "count": len(members),
        "numel": held,
        "share": held / total if total else None,
        "names": [(str(member.get("name")), _shape(member.get("shape"))) for member in members],
    }


def _evidence(arms: list[Arm]) -> list[dict[str, Any]]:
    """Returns how the intervals were made: each way, its sample size, and the arms it serves."""
    ways: dict[tuple[str, Any], list[str]] = {}
    for arm in arms:
        drop = arm.get("drop") or {}
        if drop.get("method") and not is_dense(arm):
            ways.setdefault((str(drop["method"]), drop.get("n")), []).append(label_of(arm))
    return [{"way": way, "n": n, "arms": names} for (way, n), names in ways.items()]
