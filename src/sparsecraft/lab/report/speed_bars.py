"""Bars of the layers' times as inline SVG: as it was, the best dense form, the best sparse form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from sparsecraft.lab.report.scale import fitted
from sparsecraft.lab.report.svg import element, line, text

WIDTH, NAMES, VALUES = 1000.0, 330.0, 84.0
BAR, GAP = 9.0, 14.0
AXIS = 26.0
FORMS = ("as it was", "best dense", "best sparse")
COLOURS = ("var(--c-random)", "var(--c0)", "var(--c1)")


@dataclass(frozen=True, kw_only=True)
class BarGroup:
    """The bars of one group of like layers.

    Attributes:
        name: Of the layers.
        microseconds: One for each of `FORMS`; None where it was not timed.
        labels: Name of the form that each bar stands for.
        chosen: Name of the form that was taken; its bar is marked.
    """

    name: str
    microseconds: Sequence[float | None]
    labels: Sequence[str]
    chosen: str


def render_bars(groups: Sequence[BarGroup], title: str) -> str:
    """Returns horizontal bars, the groups below each other, as an SVG element.

    Args:
        groups: In the order of the model.
        title: What it is, for readers who cannot see it.
    """
    known = [t for group in groups for t in group.microseconds if t is not None]
    scale = fitted(known, log=False, from_zero=True, pad=0.0)
    right = WIDTH - VALUES
    parts, y = [], AXIS
    tops = []
    for group in groups:
        tops.append(y)
        y += BAR * sum(t is not None for t in group.microseconds) + GAP
    height = y
    for tick in scale.ticks():
        x = NAMES + scale.position(tick) * (right - NAMES)
        parts.append(line(x, AXIS - 6, x, height - GAP / 2, class_="grid"))
        parts.append(text(f"{tick:g} µs", x, AXIS - 12, class_="tick", text_anchor="middle"))
    for group, top in zip(groups, tops, strict=True):
        parts.append(_group(group, top, lambda time: scale.position(time) * (right - NAMES)))
    return element(
        "svg",
        *parts,
        viewBox=f"0 0 {WIDTH:.0f} {height:.0f}",
        role="img",
        aria_label=title,
        class_="strip",
    )


def _group(group: BarGroup, top: float, length: Callable[[float], float]) -> str:
    shown = [
        (time, label, colour)
        for time, label, colour in zip(group.microseconds, group.labels, COLOURS, strict=True)
        if time is not None
    ]
    middle = top + BAR * len(shown) / 2 + 3.5
    parts = [text(group.name, NAMES - 10, middle, class_="tick name", text_anchor="end")]
    for row, (time, label, colour) in enumerate(shown):
        y = top + BAR * row
        wide = max(length(time), 1.0)
        mark = " ✓" if label == group.chosen else ""
        bar = element("rect", x=NAMES, y=y, width=wide, height=BAR - 2, fill=colour)
        words = text(f"{time:.0f}{mark}", NAMES + wide + 5, y + BAR - 2.5, class_="tick")
        hint = f"<title>{escape(f'{group.name}: {label}, {time:.1f} µs')}</title>"
        parts.append(element("g", hint, bar, words))
    return "".join(parts)
