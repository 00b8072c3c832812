"""A scatter chart as inline SVG: axes, error bars, lines, reference rules and placed labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from sparsecraft.lab.report.labels import Box, Label, place, width_of
from sparsecraft.lab.report.markers import Series, marker
from sparsecraft.lab.report.scale import Scale
from sparsecraft.lab.report.svg import element, line, points, text

WIDTH, HEIGHT = 440.0, 392.0
LEFT, TOP, RIGHT, BOTTOM = 52.0, 36.0, WIDTH - 12.0, HEIGHT - 46.0
ARROW = 15.0
FRAME = Box(LEFT, TOP, RIGHT, BOTTOM)


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis: its scale, what it shows, and how its values are written."""

    scale: Scale
    title: str
    write: Callable[[float], str]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One arm.

    Attributes:
        arm: The arm's id.
        series: Its look.
        x: Value on the horizontal axis.
        y: Value on the vertical axis.
        low: Lower end of the error bar, or None.
        high: Upper end of the error bar, or None.
        hint: What is shown when the point is looked at; lines are split by newlines.
        label: Words beside the point, or None.
    """

    arm: str
    series: Series
    x: float
    y: float
    low: float | None
    high: float | None
    hint: str
    label: str | None


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A straight reference line across the chart.

    Attributes:
        axis: The axis it stands on: "x" for an upright line, "y" for a level one.
        value: Where it stands.
        words: What it says: above an upright line, or shown when its marker is looked at.
        kind: CSS class: "dense" or "knee".
        to: Other end of a shaded band, or None.
        series: Whose marker stands at the top of an upright line, or None.
    """

    axis: str
    value: float
    words: str
    kind: str
    to: float | None = None
    series: Series | None = None


@dataclass(frozen=True, kw_only=True)
class Chart:
    """All that one drawing shows.

    Attributes:
        title: What it is, for readers who cannot see it.
        x: Horizontal axis.
        y: Vertical axis.
        points: The arms; later ones lie on top.
        rules: Reference lines, drawn below the points.
        joined: Whether the points of one series are joined from left to right.
    """

    title: str
    x: Axis
    y: Axis
    points: Sequence[Point]
    rules: Sequence[Rule] = ()
    joined: bool = False

    def across(self, value: float) -> float:
        """Returns the horizontal pixel of a value."""
        return LEFT + self.x.scale.position(value) * (RIGHT - LEFT)

    def down(self, value: float) -> float:
        """Returns the vertical pixel of a value."""
        return BOTTOM - self.y.scale.position(value) * (BOTTOM - TOP)

    def spot(self, point: Point) -> tuple[float, float]:
        """Returns the pixel of a point, with room for an arrow where it lies off the chart."""
        scale, y = self.y.scale, self.down(point.y)
        if point.y < scale.low:
            y -= ARROW
        elif point.y > scale.high:
            y += ARROW
        return self.across(point.x), y


def render(chart: Chart) -> str:
    """Returns the chart as an SVG element."""
    parts = [
        _grid(chart),
        *(_rule(chart, rule) for rule in chart.rules),
        _curves(chart) if chart.joined else "",
        *(_point(chart, point) for point in chart.points),
        _labels(chart),
    ]
    return element(
        "svg",
        *parts,
        viewBox=f"0 0 {WIDTH:.0f} {HEIGHT:.0f}",
        role="img",
        aria_label=chart.title,
        class_="chart",
    )


def _grid(chart: Chart) -> str:
    parts = []
    for value in chart.y.scale.ticks():
        y = chart.down(value)
        parts.append(line(LEFT, y, RIGHT, y, class_="grid"))
        words = chart.y.write(value)
        parts.append(text(words, LEFT - 7, y + 4, class_="tick", text_anchor="end"))
    for value in chart.x.scale.ticks():
        x = chart.across(value)
        parts.append(line(x, BOTTOM, x, BOTTOM + 4, class_="axis"))
        words = chart.x.write(value)
        parts.append(text(words, x, BOTTOM + 17, class_="tick", text_anchor="middle"))
    parts.append(line(LEFT, BOTTOM, RIGHT, BOTTOM, class_="axis"))
    middle = (LEFT + RIGHT) / 2
    parts.append(text(chart.x.title, middle, HEIGHT - 8, class_="name", text_anchor="middle"))
    parts.append(text(chart.y.title, 2.0, 11.0, class_="name"))
    return "".join(parts)


def _rule(chart: Chart, rule: Rule) -> str:
    if rule.axis == "y":
        return element("g", _level_rule(chart, rule), class_=f"rule {rule.kind}")
    x = chart.across(rule.value)
    if rule.series is None:
        words = text(rule.words, min(x, RIGHT - 26), TOP - 6, text_anchor="middle")
        return element("g", line(x, TOP, x, BOTTOM), words, class_=f"rule {rule.kind}")
    return element(
        "g",
        f"<title>{escape(rule.words)}</title>",
        line(x, TOP - 4, x, BOTTOM, stroke=rule.series.colour),
        marker(rule.series, x, TOP - 8, 4.2),
        class_=f"rule {rule.kind}",
        data_series=rule.series.key,
    )


def _level_rule(chart: Chart, rule: Rule) -> str:
    y = chart.down(rule.value)
    if rule.to is None:
        return line(LEFT, y, RIGHT, y)
    other = chart.down(rule.to)
    return element(
        "rect", x=LEFT, y=min(y, other), width=RIGHT - LEFT, height=max(abs(other - y), 1.0)
    )


def _curves(chart: Chart) -> str:
    by_series: dict[str, list[Point]] = {}
    for point in chart.points:
        by_series.setdefault(point.series.key, []).append(point)
    parts = []
    for key, members in by_series.items():
        if len(members) < 2:
            continue
        ordered = sorted(members, key=lambda point: (point.x, point.y))
        corners = points(
            (
                chart.across(point.x) - LEFT,
                (1 - chart.y.scale.project(point.y)) * (BOTTOM - TOP),
            )
            for point in ordered
        )
        look = {"stroke": ordered[0].series.colour, "data_series": key}
        if ordered[0].series.hollow:
            look["stroke_dasharray"] = "3 3"
        parts.append(element("polyline", points=corners, class_="curve", **look))
    # An inner svg clips what leaves the frame, so that slopes stay true in the close view.
    return element("svg", *parts, x=LEFT, y=TOP, width=RIGHT - LEFT, height=BOTTOM - TOP)


def _point(chart: Chart, point: Point) -> str:
    x, y = chart.spot(point)
    parts = [f"<title>{escape(point.hint)}</title>"]
    scale = chart.y.scale
    if point.low is not None and point.high is not None and scale.low <= point.y <= scale.high:
        ends = chart.down(point.low), chart.down(point.high)
        parts.append(line(x, ends[0], x, ends[1], class_="bar", stroke=point.series.colour))
    if point.y < scale.low or point.y > scale.high:
        parts.append(_off_scale(x, y, below=point.y < scale.low))
    parts.append(marker(point.series, x, y))
    return element(
        "g",
        *parts,
        class_="point",
        data_arm=point.arm,
        data_series=point.series.key,
    )


def _off_scale(x: float, y: float, *, below: bool) -> str:
    """Returns a small arrow that says that the point lies further out."""
    way = 1.0 if below else -1.0
    corners = [(x - 4, y + way * 8), (x + 4, y + way * 8), (x, y + way * 13)]
    return element("polygon", points=points(corners), class_="off")


def _labels(chart: Chart) -> str:
    spots = [chart.spot(point) for point in chart.points]
    boxes = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in spots]
    words = [
        Label(point.label, *spot)
        for point, spot in zip(chart.points, spots, strict=True)
        if point.label
    ]
    parts = []
    for placed in place(words[::-1], boxes, FRAME):
        label = placed.label
        if placed.leader:
            near = min(max(label.x, placed.x), placed.x + width_of(label.words))
            parts.append(line(label.x, label.y, near, placed.y - 4, class_="leader"))
        parts.append(text(label.words, placed.x, placed.y, class_="label"))
    return element("g", *parts, class_="labels")
