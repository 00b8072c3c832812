"""The tables of `sparsecraft speed`: each layer's forms and the winner, then the whole model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Column, Table

from sparsecraft.lab.report.values import milliseconds
from sparsecraft.lab.rounds import Rounds, verdict
from sparsecraft.lab.speed_layers import layer_groups

if TYPE_CHECKING:
    from sparsecraft.lab.speed_report import SpeedReport
    from sparsecraft.model.runtime import DecisionRecord


def layers(record: DecisionRecord, *, every: bool = False) -> Table:
    """Returns a line for each group of like layers and number of rows, or for every layer."""
    table = Table(
        "n", "rows", "density", "inputs", "as it was", "best dense", "best sparse", "won", "why"
    )
    table.columns.insert(0, Column("layers", no_wrap=True))
    for group in layer_groups(record, every=every):
        table.add_row(
            group.name,
            str(group.count),
            str(group.rows),
            f"{group.density:.2f}",
            "all" if group.kept is None else f"{group.kept:.2f}",
            _time(group.as_it_was),
            _form(group.dense),
            _form(group.sparse),
            group.chosen,
            group.why.removeprefix(f"stays {group.chosen}: ").removeprefix(f"{group.chosen}: "),
        )
    return table


def whole(report: SpeedReport) -> Table:
    """Returns a line for each form and what was timed of it: the figure, beside dense, in words."""
    table = Table("whole model", "form", "figure", "of dense", "")
    for form, found in report.decoding.items():
        shown = f"{found.rate.median:.1f} tokens/s"
        table.add_row("decoding", form, shown, *_beside(found.rate, report.decoding["dense"].rate))
    for size, forms in report.forward.items():
        what = "one token each" if report.kind == "decoder" else "whole pass"
        for form, ms in forms.items():
            compared = _beside(ms, forms["dense"], less_is_faster=True)
            table.add_row(f"{what}, batch {size}", form, milliseconds(ms.median), *compared)
    return table


def _beside(mine: Rounds, dense: Rounds, *, less_is_faster: bool = False) -> tuple[str, str]:
    ratio = dense.over(mine) if less_is_faster else mine.over(dense)
    if mine is dense:
        return "1", ""
    words = {"faster": "faster", "slower": "no speed-up here, slower", "none": "no speed-up here"}
    return f"{ratio.median:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]", words[verdict(ratio)]


def _form(found: tuple[str, float] | None) -> str:
    return "none" if found is None else f"{found[0]} {_time(found[1])}"


def _time(microseconds: float | None) -> str:
    return "not timed" if microseconds is None else f"{microseconds:.0f} us"
