"""The page of a speed report: the answer, bars of every layer, the whole model, what is lost."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

from sparsecraft.core.errors import MissingDependency
from sparsecraft.lab.report.speed_bars import COLOURS, FORMS, BarGroup, render_bars
from sparsecraft.lab.report.values import MISSING, quantity, size, three_digits
from sparsecraft.lab.rounds import Rounds, verdict
from sparsecraft.lab.speed_layers import LayerGroup, layer_groups
from sparsecraft.lab.speed_words import speeds, verdicts

if TYPE_CHECKING:
    from sparsecraft.lab.speed_report import SpeedReport

GAIN = {"faster": "faster", "slower": "no speed-up here, slower", "none": "no speed-up here"}


def render_speed_page(report: SpeedReport) -> str:
    """Returns the report as one HTML page that opens anywhere.

    Raises:
        MissingDependency: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment
    except ModuleNotFoundError as error:
        raise MissingDependency("jinja2", "lab", "The HTML report") from error
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_file("speed.html.j2"))
    said = verdicts(report)
    return template.render(
        css=_file("report.css"),
        report=report,
        parameters=quantity(report.parameters),
        headline=said[0],
        said=said[1:],
        legend=list(zip(FORMS, COLOURS, strict=True)),
        figures=_figures(report),
        layers=[_layer(group) for group in layer_groups(report.record, every=True)],
        whole=_whole(report),
        held=(size(report.record.bytes), size(report.record.dense_bytes)),
        machine=report.environment.get("machine", {}),
        versions=report.environment.get("versions", {}),
    )


def _figures(report: SpeedReport) -> list[tuple[str, str]]:
    """Returns a title and a drawing for each number of rows."""
    groups = layer_groups(report.record)
    found = []
    for rows in dict.fromkeys(group.rows for group in groups):
        bars = [_bars(group) for group in groups if group.rows == rows]
        title = f"{rows} row{'s' if rows > 1 else ''} of input"
        found.append((title, render_bars(bars, f"Microseconds of each layer, {title}")))
    return found


def _bars(group: LayerGroup) -> BarGroup:
    forms = (None, group.dense, group.sparse)
    times = [group.as_it_was, *(None if form is None else form[1] for form in forms[1:])]
    labels = ["as it was", *("" if form is None else form[0] for form in forms[1:])]
    name = group.name if group.count == 1 else f"{group.name} ({group.count})"
    return BarGroup(name=name, microseconds=times, labels=labels, chosen=group.chosen)


def _layer(group: LayerGroup) -> list[str]:
    return [
        group.name,
        str(group.rows),
        f"{group.density:.2f}",
        "all" if group.kept is None else f"{group.kept:.2f}",
        MISSING if group.as_it_was is None else f"{group.as_it_was:.0f}",
        *(MISSING if f is None else f"{f[0]} {f[1]:.0f}" for f in (group.dense, group.sparse)),
        group.chosen,
        group.why,
    ]


def _whole(report: SpeedReport) -> list[list[str]]:
    rows = []
    for what, forms in speeds(report).items():
        for form, speed in forms.items():
            rows.append([what, form, _figure(report, what, speed), *_beside(speed, forms["dense"])])
    return rows


def _figure(report: SpeedReport, what: str, speed: Rounds) -> str:
    if what == "decoding":
        return f"{three_digits(speed.median)} tokens/s"
    return f"{three_digits(1 / speed.median)} ms"


def _beside(speed: Rounds, dense: Rounds) -> tuple[str, str]:
    if speed is dense:
        return "1", ""
    ratio = speed.over(dense)
    return f"{ratio.median:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]", GAIN[verdict(ratio)]


def _file(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")
