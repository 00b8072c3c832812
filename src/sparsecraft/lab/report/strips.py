"""Rows of small marks: drops with their intervals, knees with theirs, and densities by layer."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from sparsecraft.lab.report.arms import (
    Comparison,
    Span,
    arms_of,
    dense_arm,
    drop_span,
    higher_is_better,
    is_dense,
    label_of,
    seed_drops,
)
from sparsecraft.lab.report.markers import marker, series_key, series_of
from sparsecraft.lab.report.scale import Scale, fitted
from sparsecraft.lab.report.svg import element, line, points, text
from sparsecraft.lab.report.values import interval, number, percent

WIDTH, ROW, NAMES = 860.0, 22.0, 180.0
# Drops beyond this are drawn at the edge: the question is which arms are near dense.
EDGE = 0.2


def forest(comparison: Comparison) -> str:
    """Returns the drop of each arm against dense: estimate, interval, and a dot for each seed.

    Empty where no drop is known.
    """
    arms = [
        arm
        for arm in arms_of(comparison)
        if not is_dense(arm) and drop_span(arm).estimate is not None
    ]
    if not arms:
        return ""
    arms.sort(key=lambda arm: drop_span(arm).estimate or 0.0)
    higher = higher_is_better(comparison)
    ends = [end for arm in arms for end in drop_span(arm) if end is not None]
    scale = fitted([0.0, *(min(max(end, -EDGE), EDGE) for end in ends)], log=False, pad=0.03)
    looks = series_of(arms_of(comparison))
    rows = []
    for index, arm in enumerate(arms):
        drop = drop_span(arm)
        seeds = seed_drops(arm, dense_arm(comparison), higher)
        y = 30 + ROW * index
        body = [
            f"<title>{escape(f'{label_of(arm)}: {interval(*drop)}')}</title>",
            text(_short(label_of(arm)), NAMES - 14, y + 4, class_="tick name", text_anchor="end"),
            *_interval(scale, drop, y, looks[series_key(arm)].colour),
            *(element("circle", cx=_x(scale, seed), cy=y, r=1.8, class_="seed") for seed in seeds),
            marker(looks[series_key(arm)], _x(scale, drop.estimate or 0.0), y, 4.2),
            text(interval(*drop), WIDTH - 4, y + 4, class_="tick", text_anchor="end"),
        ]
        rows.append(element("g", *body, class_="row", data_arm=str(arm.get("id"))))
    height = 30 + ROW * len(arms)
    grid = _grid(scale, 14.0, height, _tick_percent)
    zero = _x(scale, 0.0)
    rule = line(zero, 14, zero, height, class_="zero")
    words = text("worse than dense →", zero + 6, 10, class_="tick")
    return _svg(height + 30, "Drop of each arm against dense", grid, rule, words, *rows)


def knee_strip(comparison: Comparison) -> str:
    """Returns each knee with its interval on one axis of sparsity; empty where there is none."""
    knees = [knee for knee in comparison.get("knees") or () if number(knee, "knee") is not None]
    if not knees:
        return ""
    scale = Scale(low=0.0, high=1.0)
    looks, rows = series_of(arms_of(comparison)), []
    for index, knee in enumerate(knees):
        y = 30 + ROW * index
        span = Span(*(number(knee, key) for key in ("knee", "low", "high")))
        look = looks.get(series_key(knee)) or series_of([knee])[series_key(knee)]
        body = [
            text(_short(look.name), NAMES - 14, y + 4, class_="tick name", text_anchor="end"),
            *_interval(scale, span, y, look.colour),
            marker(look, _x(scale, span.estimate or 0.0), y, 4.2),
            text(percent(span.estimate), WIDTH - 4, y + 4, class_="tick", text_anchor="end"),
        ]
        faint = None if knee.get("has_knee") else "faint"
        rows.append(element("g", *body, class_=faint))
    height = 30 + ROW * len(knees)
    grid = _grid(scale, 14.0, height, lambda value: percent(value, 0))
    return _svg(height + 30, "Knee of each method", grid, *rows)


def heat(comparison: Comparison) -> str:
    """Returns the achieved density of each layer (columns) for each arm (rows)."""
    arms = [arm for arm in arms_of(comparison) if arm.get("layers")]
    if not arms:
        return ""
    names = list(dict.fromkeys(layer["name"] for arm in arms for layer in arm["layers"]))
    wide, high = (WIDTH - NAMES) / len(names), 16.0
    parts = []
    for row, arm in enumerate(arms):
        y = 8 + high * row
        label = _short(label_of(arm))
        parts.append(text(label, NAMES - 14, y + 12, class_="tick name", text_anchor="end"))
        for layer in arm["layers"]:
            density = number(layer, "achieved")
            if density is None:
                continue
            x = NAMES + wide * names.index(layer["name"])
            words = f"{label_of(arm)}\n{layer['name']}\ndensity {percent(density)}"
            parts.append(
                element(
                    "rect",
                    f"<title>{escape(words)}</title>",
                    x=x,
                    y=y,
                    width=max(wide - 1, 0.5),
                    height=high - 2,
                    class_="cell",
                    fill_opacity=_shade(density),
                )
            )
    bottom = 8 + high * len(arms)
    parts.append(_heat_key(bottom + 34))
    parts.append(text(f"first layer: {names[0]}", NAMES, bottom + 16, class_="tick"))
    if len(names) > 1:
        words = f"last: {names[-1]}"
        parts.append(text(words, WIDTH, bottom + 16, class_="tick", text_anchor="end"))
    return _svg(bottom + 50, "Achieved density of each layer for each arm", *parts)


def _heat_key(y: float) -> str:
    """Returns a row of boxes that says which shade is which density."""
    parts = [text("density", NAMES - 14, y + 9, class_="tick", text_anchor="end")]
    for step in range(6):
        x = NAMES + 58.0 * step
        shade = _shade(step / 5)
        parts.append(
            element("rect", x=x, y=y, width=18, height=11, class_="cell", fill_opacity=shade)
        )
        parts.append(text(percent(step / 5, 0), x + 22, y + 9, class_="tick"))
    return "".join(parts)


def _shade(density: float) -> float:
    """Returns the opacity of a density; none at all would look like a missing layer."""
    return 0.06 + 0.94 * min(max(density, 0.0), 1.0)


def _tick_percent(value: float) -> str:
    """Returns a fraction in whole percent, or with one decimal where it needs it."""
    return percent(value, 0 if abs(100 * value - round(100 * value)) < 1e-6 else 1)


def _svg(height: float, title: str, *parts: str) -> str:
    return element(
        "svg",
        *parts,
        viewBox=f"0 0 {WIDTH:.0f} {height:.0f}",
        role="img",
        aria_label=title,
        class_="strip",
    )


def _x(scale: Scale, value: float) -> float:
    return NAMES + scale.position(value) * (WIDTH - 130 - NAMES)


def _grid(scale: Scale, top: float, bottom: float, write: Callable[[float], str]) -> str:
    parts = []
    for value in scale.ticks(6):
        x = _x(scale, value)
        parts.append(line(x, top, x, bottom, class_="grid"))
        parts.append(text(write(value), x, bottom + 16, class_="tick", text_anchor="middle"))
    return "".join(parts)


def _interval(scale: Scale, span: Span, y: float, colour: str) -> list[str]:
    """Returns the bar of an interval, with an arrow where it leaves the axis."""
    parts = []
    if span.low is not None and span.high is not None:
        ends = _x(scale, span.low), _x(scale, span.high)
        parts.append(line(ends[0], y, ends[1], y, class_="bar", stroke=colour))
    if span.estimate is not None and span.estimate > scale.high:
        edge = _x(scale, scale.high) + 8
        corners = [(edge, y - 4), (edge, y + 4), (edge + 5, y)]
        parts.append(element("polygon", points=points(corners), class_="off"))
    return parts


def _short(words: str) -> str:
    return words if len(words) <= 32 else words[:31] + "…"
