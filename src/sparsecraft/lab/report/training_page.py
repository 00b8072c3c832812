"""The page of a training: the table, densities and losses over the steps; one file, no scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from sparsecraft.core.errors import MissingDependency
from sparsecraft.lab.report.scale import Scale, fitted
from sparsecraft.lab.report.svg import element, line, points, text
from sparsecraft.lab.report.values import score, three_digits

WIDTH, HEIGHT = 560.0, 260.0
LEFT, TOP, RIGHT, BOTTOM = 56.0, 14.0, WIDTH - 12.0, HEIGHT - 40.0
Curve = Sequence[Sequence[float]]
Table = tuple[list[str], list[list[str]]]


def render(found: Mapping[str, Any], table: Table) -> str:
    """Returns the report as one HTML page.

    Args:
        found: What report.json holds.
        table: Heads and rows, in words.

    Raises:
        MissingDependency: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment
    except ModuleNotFoundError as error:
        raise MissingDependency("jinja2", "lab", "The HTML report") from error
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_file("training.html.j2"))
    heads, rows = table
    return template.render(
        css=_file("report.css"),
        found=found,
        heads=heads,
        rows=rows,
        differences=[
            {"against": each["against"], "words": words_of(each)} for each in found["differences"]
        ],
        density=chart(_curves(found, "densities", stairs=True), "density of the targeted weights"),
        loss=chart(_curves(found, "losses"), "training loss"),
        legend=[(arm["label"], _colour(place)) for place, arm in enumerate(found["arms"])],
    )


def chart(curves: Sequence[Curve], title: str) -> str:
    """Returns curves over the steps as an SVG element, in the colours of their order."""
    known = [point for curve in curves for point in curve if point[1] is not None]
    across = fitted([x for x, _ in known], log=False, pad=0.0)
    down = fitted([y for _, y in known], log=False, from_zero=True)
    lines = [
        element(
            "polyline",
            points=points((_x(across, x), _y(down, y)) for x, y in curve),
            class_="curve",
            fill="none",
            stroke=_colour(place),
        )
        for place, curve in enumerate(curves)
        if curve
    ]
    return element(
        "svg",
        *_axes(across, down, title),
        *lines,
        viewBox=f"0 0 {WIDTH:.0f} {HEIGHT:.0f}",
        role="img",
        aria_label=title,
        class_="chart",
    )


def _axes(across: Scale, down: Scale, title: str) -> list[str]:
    parts = []
    for value in down.ticks():
        y = _y(down, value)
        parts.append(line(LEFT, y, RIGHT, y, class_="grid"))
        words = three_digits(value)
        parts.append(text(words, LEFT - 6, y + 4, class_="tick", text_anchor="end"))
    for value in across.ticks():
        words = f"{value:g}"
        parts.append(
            text(words, _x(across, value), BOTTOM + 16, class_="tick", text_anchor="middle")
        )
    middle = (LEFT + RIGHT) / 2
    parts.append(text(f"steps; {title}", middle, HEIGHT - 6, class_="name", text_anchor="middle"))
    return parts


def _curves(found: Mapping[str, Any], key: str, *, stairs: bool = False) -> list[Curve]:
    """Returns each arm's curve of the first seed; a density holds until the next is told."""
    curves: list[Curve] = []
    for arm in found["arms"]:
        told = [point for point in arm["runs"][0][key] if point[1] is not None]
        if stairs:
            steps: list[Sequence[float]] = []
            for point in told:
                if steps:
                    steps.append([point[0], steps[-1][1]])
                steps.append(point)
            told = steps
        curves.append(told)
    return curves


def words_of(difference: Mapping[str, Any]) -> str:
    """Returns a paired difference with its interval, or with the reason why it has none."""
    low, high, seeds = difference["low"], difference["high"], difference["n"]
    estimate = score(difference["estimate"])
    if low is not None and high is not None:
        return f"{estimate} [{score(low)}, {score(high)}], {seeds} seeds"
    if seeds == 1:
        return f"{estimate}, 1 seed: no interval, nothing is known of the spread"
    return f"{estimate} in each of {seeds} seeds: no interval can be formed from equal differences"


def _colour(place: int) -> str:
    return f"var(--c{place % 7})"


def _x(scale: Scale, value: float) -> float:
    return LEFT + scale.position(value) * (RIGHT - LEFT)


def _y(scale: Scale, value: float) -> float:
    return BOTTOM - scale.position(value) * (BOTTOM - TOP)


def _file(name: str) -> str:
    return (resources.files("sparsecraft.lab.report") / name).read_text(encoding="utf-8")
