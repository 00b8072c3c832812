"""The page of a training: the table, densities and losses over the steps; one file, no scripts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from sparsecraft.core.errors import MissingDependency
from sparsecraft.lab.report.scale import Scale, fitted
from sparsecraft.lab.report.svg import element, line, points, text
from sparsecraft.lab.report.values import (
    MISSING,
    TIGHT,
    milliseconds,
    quantity,
    score,
    size,
    three_digits,
)

WIDTH, HEIGHT = 560.0, 260.0
LEFT, TOP, RIGHT, BOTTOM = 56.0, 14.0, WIDTH - 12.0, HEIGHT - 40.0
Curve = Sequence[Sequence[float]]
Table = tuple[list[str], list[list[str]]]
SETTINGS = ("method", "settings", "removal", "machine", "versions")
MASKED, COMPACT = "with zeros", "made smaller"
ZEROS_ALONE = "simulated: no speed-up from zeros alone"


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
        figures=list(zip(heads[1:], *(row[1:] for row in rows), strict=True)),
        settings=[(name, _listed(found[name])) for name in SETTINGS if found.get(name)],
        differences=[
            {"against": each["against"], "words": words_of(each)} for each in found["differences"]
        ],
        forms=forms(found),
        verdict=verdict(found),
        density=chart(_curves(found, "densities", stairs=True), "density of the targeted weights"),
        loss=chart(_curves(found, "losses"), "training loss"),
        legend=[
            (arm["label"], _colour(place), "dashed" if _dashes(place) != "none" else "solid")
            for place, arm in enumerate(found["arms"])
        ],
    )


def forms(found: Mapping[str, Any]) -> Table | None:
    """Returns what the forms of the finished model weigh and how fast they are; None untimed.

    Bytes are those of the tensors, and beside them of the kept values with one bit an entry.
    """
    timed = found.get("latency")
    if not timed or not timed["forms"]:
        return None
    method, first = found["arms"][0]["runs"][0], next(iter(timed["forms"].values()))
    batches = [key for key in first if key != "why"]
    heads = ["model", "parameters", "not zero", "bytes", "packed"]
    heads += [f"batch {batch}" for batch in batches] + [f"x dense, {batch}" for batch in batches]
    whole = [quantity(method["parameters"])] * 2 + [size(method["bytes"])] * 2
    times = [_time(first[batch]["dense_ms"]) for batch in batches]
    rows = [["dense", *whole, *times, *("1" for _ in batches)]]
    for name, latency in timed["forms"].items():
        record = method["compact"] if name == COMPACT else method
        kept = [quantity(record["parameters"]), quantity(record["kept"]), size(record["bytes"])]
        packed = size(record["packed_bytes"])
        if "why" in latency:
            rows.append([name, *kept, packed, *[MISSING] * (2 * len(batches))])
            continue
        times = [_time(latency[batch]["ms"]) for batch in batches]
        words = [speed_words(name, latency[batch]) for batch in batches]
        rows.append([name, *kept, packed, *times, *words])
    return heads, rows


def verdict(found: Mapping[str, Any]) -> list[str]:
    """Returns, for each form that was timed, whether it brought speed."""
    timed = found.get("latency") or {"forms": {}}
    said = []
    for name, latency in timed["forms"].items():
        if "why" in latency:
            said.append(f"{name}: not timed, {latency['why']}")
        elif name == MASKED:
            said.append(f"{name}: {ZEROS_ALONE}")
        else:
            at = [
                f"batch {batch}: {_speed_sentence(name, each)}" for batch, each in latency.items()
            ]
            said.append(f"{name}, {'; '.join(at)}")
    return said


def _time(ms: float) -> str:
    return milliseconds(ms) if ms >= 0.1 else f"{1000 * ms:.0f}{TIGHT}µs"


def _speed_sentence(form: str, latency: Mapping[str, Any]) -> str:
    words = speed_words(form, latency)
    return words if ":" in words else f"{words} times as fast as dense"


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name}={json.dumps(value) if isinstance(value, dict | list) else value}"
        for name, value in values.items()
    )


def speed_words(form: str, latency: Mapping[str, Any]) -> str:
    """Returns what may be said of the speed of a form at one batch size.

    Zeros that dense kernels multiply by bring no speed, whatever a round may say.

    Args:
        form: "with zeros" or "made smaller".
        latency: The fields of `Latency`.

    Example:
        >>> speed_words(COMPACT, {"ratio": 1.5, "ratio_low": 0.9, "ratio_high": 2.0})
        'no speed-up: 1.50 [0.90, 2.00]'
        >>> speed_words(COMPACT, {"ratio": 1.5, "ratio_low": 1.2, "ratio_high": 2.0})
        '1.50 [1.20, 2.00]'
    """
    ratio, low, high = (latency[name] for name in ("ratio", "ratio_low", "ratio_high"))
    figures = f"{three_digits(ratio)} [{three_digits(low)}, {three_digits(high)}]"
    if form == MASKED or low <= 1 <= high:
        return f"no speed-up: {figures}"
    return figures if low > 1 else f"slower: {figures}"


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
            stroke_dasharray=_dashes(place),
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


def _dashes(place: int) -> str:
    """Returns dashes for the later curves, whose colours are near those of the first."""
    return "6 3" if place >= 4 else "none"


def _x(scale: Scale, value: float) -> float:
    return LEFT + scale.position(value) * (RIGHT - LEFT)


def _y(scale: Scale, value: float) -> float:
    return BOTTOM - scale.position(value) * (BOTTOM - TOP)


def _file(name: str) -> str:
    return (resources.files("sparsecraft.lab.report") / name).read_text(encoding="utf-8")
