"""One look for each method: a colour and a shape of its own, hollow where the pattern is fixed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sparsecraft.lab.report.arms import Arm
from sparsecraft.lab.report.svg import element, points

# Colours are CSS variables --c0 to --c6, so that light and dark pages have their own. Seven
# colours and six shapes share no factor: 42 methods look different before a pair repeats.
COLOURS = 7


def _polygon(
    corners: int, turn: float = 0.0, inner: float = 1.0
) -> tuple[tuple[float, float], ...]:
    """Returns a regular polygon, or a star where every second corner lies further in."""
    result = []
    for corner in range(corners):
        angle = 2 * math.pi * corner / corners - math.pi / 2 + turn
        radius = inner if corner % 2 else 1.0
        result.append((radius * math.cos(angle), radius * math.sin(angle)))
    return tuple(result)


def _cross() -> tuple[tuple[float, float], ...]:
    arm = 0.36
    plus = [(-arm, -1.0), (arm, -1.0), (arm, -arm), (1.0, -arm), (1.0, arm), (arm, arm)]
    plus += [(-x, -y) for x, y in plus]
    half = math.sqrt(0.5)
    return tuple((half * (x - y), half * (x + y)) for x, y in plus)


_SHAPES = {
    "triangle": _polygon(3),
    "square": _polygon(4, math.pi / 4),
    "hexagon": _polygon(6),
    "down": _polygon(3, math.pi),
    "pentagon": _polygon(5),
    "cross": _cross(),
    "diamond": _polygon(4),
    "star": _polygon(10, inner=0.45),
    "circle": (),
}
_ROTATION = ("circle", "triangle", "square", "down", "hexagon", "pentagon")


@dataclass(frozen=True, kw_only=True)
class Series:
    """Arms that belong together: one method with one pattern, at several sparsities.

    Attributes:
        key: Name in the page's attributes.
        name: Name for the reader.
        colour: A CSS colour.
        shape: Name of the marker's shape.
        hollow: Whether the marker is drawn as an outline.
    """

    key: str
    name: str
    colour: str
    shape: str
    hollow: bool


def series_of(arms: Sequence[Arm]) -> dict[tuple[str, str], Series]:
    """Returns the series of the arms, by `series_key`, in order of appearance."""
    found: dict[tuple[str, str], Series] = {}
    looks: dict[str, tuple[str, str]] = {}
    for arm in arms:
        method, pattern = series_key(arm)
        if (method, pattern) in found:
            continue
        family = method.removesuffix("int8").strip(" _-") or method
        if family not in looks:
            looks[family] = _look(family, sum(name not in _FIXED for name in looks))
        colour, shape = looks[family]
        name = method.replace("_", " ") + (f", {pattern}" if pattern else "")
        hollow = bool(pattern) or family != method
        found[method, pattern] = Series(
            key=f"s{len(found)}", name=name, colour=colour, shape=shape, hollow=hollow
        )
    return found


def series_key(arm: Arm) -> tuple[str, str]:
    """Returns the method and its pattern; the pattern is empty where zeros may lie anywhere."""
    pattern = str(arm.get("pattern") or "")
    free = not pattern or pattern.lower().startswith("unstructured")
    return str(arm.get("method")), "" if free else pattern


_FIXED = {
    "dense": ("var(--ink)", "diamond"),
    "random": ("var(--c-random)", "cross"),
    "compact": ("var(--c-compact)", "star"),
}


def _look(family: str, index: int) -> tuple[str, str]:
    """Returns colour and shape; the controls and the compact model look the same in all reports."""
    if family in _FIXED:
        return _FIXED[family]
    return f"var(--c{index % COLOURS})", _ROTATION[index % len(_ROTATION)]


def marker(series: Series, x: float, y: float, radius: float = 5.0) -> str:
    """Returns the marker of a series as SVG, centred at x and y."""
    fill = "var(--paper)" if series.hollow else series.colour
    look = {"fill": fill, "stroke": series.colour}
    if series.shape == "circle":
        return element("circle", cx=x, cy=y, r=0.9 * radius, **look)
    grow = {"star": 1.45, "square": 1.15, "triangle": 1.2, "down": 1.2, "cross": 1.15}
    reach = radius * grow.get(series.shape, 1.1)
    corners = [(x + reach * dx, y + reach * dy) for dx, dy in _SHAPES[series.shape]]
    return element("polygon", points=points(corners), **look)
