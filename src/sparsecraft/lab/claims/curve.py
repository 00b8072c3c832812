"""A claim's curve as one SVG: the mean of a metric over an axis, a line for each series.

Arms that lie on an axis are named "series, axis=value"; a series named without an axis, such as
"dense", is drawn as a level across the whole axis.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sparsecraft.lab.evidence.table import Row, Summary, summarise
from sparsecraft.lab.report.scale import Scale, fitted
from sparsecraft.lab.report.svg import element, line, points, text

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 60, 190, 20, 50
MOST_TICKS = 10
DASHES = (None, "6 3", "2 3")
# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


@dataclass(frozen=True)
class Point:
    """The mean of an arm at a value of the axis, with one standard deviation to each side."""

    x: float
    mean: float
    spread: float


def draw(rows: Sequence[Row], metric: str) -> str | None:
    """Returns the SVG of a metric's curves, or None where no arm lies on an axis.

    Args:
        rows: Measurements.
        metric: Which of their metrics.

    Example:
        >>> rows = [Row(f"erk, width={w}", 0, "accuracy", w / 10) for w in (4, 8)]
        >>> draw(rows, "accuracy")[:4], draw([Row("dense", 0, "accuracy", 1.0)], "accuracy")
        ('<svg', None)
    """
    axis, curves, levels = _series([each for each in summarise(rows) if each.metric == metric])
    if not curves:
        return None
    every = [point for curve in curves.values() for point in curve]
    values = [p.mean + side * p.spread for p in every for side in (-1, 1)]
    x = fitted([point.x for point in every])
    y = fitted([*values, *levels.values()], log=False)
    marked = sorted({point.x for point in every})
    parts = [_frame(x, y, marked if len(marked) <= MOST_TICKS else x.ticks(), axis, metric)]
    for index, (name, curve) in enumerate(curves.items()):
        parts += [_curve(curve, x, y, _pen(index)), _key(name, index)]
    for index, (name, level) in enumerate(levels.items(), start=len(curves)):
        at = _down(y, level)
        parts += [line(LEFT, at, WIDTH - RIGHT, at, **_pen(index)), _key(name, index)]
    height = max(HEIGHT, TOP + 18 * (len(curves) + len(levels)) + 10)
    return element(
        "svg",
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {height}",
        font_family="sans-serif",
        font_size=12,
    )


def _series(
    found: Sequence[Summary],
) -> tuple[str, dict[str, list[Point]], dict[str, float]]:
    """Returns the axis' name, the curves by series, and the levels of arms without an axis."""
    axis = ""
    curves: dict[str, list[Point]] = {}
    levels: dict[str, float] = {}
    for each in found:
        match = re.fullmatch(r"(.+), ([\w ]+)=([\d.]+)", each.arm)
        if match is None:
            levels[each.arm] = each.mean
            continue
        axis = match[2]
        spread = each.sd if each.n > 1 else 0.0
        curves.setdefault(match[1], []).append(Point(float(match[3]), each.mean, spread))
    for curve in curves.values():
        curve.sort(key=lambda point: point.x)
    return axis, curves, levels


def _pen(index: int) -> dict[str, object]:
    """Returns the stroke of a series: a colour, and a dash once the colours are used up."""
    round_, colour = divmod(index, len(COLOURS))
    return {"stroke": COLOURS[colour], "stroke_dasharray": DASHES[round_ % len(DASHES)]}


def _across(x: Scale, value: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * x.position(value)


def _down(y: Scale, value: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * y.position(value)


def _frame(x: Scale, y: Scale, marked: Sequence[float], axis: str, metric: str) -> str:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = [element("rect", width="100%", height="100%", fill="white")]
    for tick in y.ticks():
        at = _down(y, tick)
        parts.append(line(LEFT, at, right, at, stroke="#dddddd"))
        parts.append(text(f"{tick:g}", LEFT - 6, at + 4, text_anchor="end"))
    for tick in marked:
        at = _across(x, tick)
        parts.append(line(at, bottom, at, bottom + 4, stroke="#444444"))
        parts.append(text(f"{tick:g}", at, bottom + 18, text_anchor="middle"))
    middle = (LEFT + right) / 2
    parts.append(text(axis, middle, HEIGHT - 10, text_anchor="middle"))
    parts.append(text(metric, LEFT, TOP - 6))
    return element("g", *parts, fill="#444444")


def _curve(curve: Sequence[Point], x: Scale, y: Scale, pen: dict[str, object]) -> str:
    corners = [(_across(x, point.x), _down(y, point.mean)) for point in curve]
    parts = [element("polyline", points=points(corners), fill="none", stroke_width=2, **pen)]
    for point, (across, down) in zip(curve, corners, strict=True):
        parts.append(element("circle", cx=across, cy=down, r=3, fill=pen["stroke"]))
        ends = [_down(y, point.mean + side * point.spread) for side in (-1, 1)]
        parts.append(line(across, ends[0], across, ends[1], stroke=pen["stroke"]))
    return element("g", *parts)


def _key(name: str, index: int) -> str:
    left, down = WIDTH - RIGHT + 14, TOP + 12 + 18 * index
    mark = line(left, down - 4, left + 16, down - 4, stroke_width=2, **_pen(index))
    return element("g", mark, text(name, left + 22, down))
