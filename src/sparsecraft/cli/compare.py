"""`sparsecraft compare`: which method, how sparse, and what is really gained."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from sparsecraft.cli.parser import Parser
from sparsecraft.cli.settings_arguments import add_settings, build
from sparsecraft.cli.terminal import console, say
from sparsecraft.core.errors import InvalidValue
from sparsecraft.lab.settings import OPTIONS, CompareSettings

if TYPE_CHECKING:
    from rich.table import Table

RESUME = "The same command goes on where it stopped: finished runs are kept in --out."


def parser() -> Parser:
    """Returns the parser of this verb."""
    made = Parser(
        prog="sparsecraft compare",
        description=(
            "Prunes one model with several methods at several sparsities, beside the dense model\n"
            "and random pruning, and measures each on this machine: quality, bytes, seconds.\n"
            "What is chosen is chosen on a validation half and reported on the test half. The\n"
            "report is one HTML file; every run is stored, and the same command resumes what was\n"
            "stopped. Without a MODEL the demo runs: a text encoder on Python's documentation.\n\n"
            "examples:\n"
            "  sparsecraft compare\n"
            "  sparsecraft compare my-model --text notes.txt --method wanda,sparsegpt\n"
            "  sparsecraft compare my-model --text notes.txt --method ./mine.py:Mine\n"
            "  sparsecraft compare --sparsity 30%,50% --max-drop 3% --prefer size\n"
            "  sparsecraft compare --setting smoke --out quick\n"
            "  sparsecraft compare --report sparsecraft-report"
        ),
    )
    add_settings(made, CompareSettings, options=OPTIONS, positional="model")
    made.add_argument(
        "--report", type=Path, metavar="STORE", help="draw the report of a run store anew, and stop"
    )
    made.add_argument("--dry-run", action="store_true", help="print what would be run, and stop")
    return made


def run(arguments: argparse.Namespace) -> int:
    """Runs the comparison, redraws a report or prints the plan, and returns 0."""
    from sparsecraft.lab import compare as lab

    if arguments.report is not None:
        _alone(arguments)
        say(f"report: {lab.redraw(arguments.report)}")
        return 0
    settings = build(CompareSettings, arguments)
    if arguments.dry_run:
        console().print(_plan(settings))
        return 0
    lab.compare(settings)
    return 0


def _alone(arguments: argparse.Namespace) -> None:
    """Raises InvalidValue if settings are given beside --report, which runs nothing."""
    fields = (field.name for field in dataclasses.fields(CompareSettings))
    given = [name for name in fields if getattr(arguments, name, None) is not None]
    if given:
        raise InvalidValue(
            f"--report draws what was measured and runs nothing, so {given[0]!r} has no effect "
            "beside it; leave it out."
        )


def _plan(settings: CompareSettings) -> Table:
    """Returns the arms in the order in which they run, with their numbers of seeds."""
    from collections import Counter

    from rich.table import Table

    from sparsecraft.lab.grid import plan

    cells = plan(settings.actual)
    runs = Counter(cell.arm for cell in cells)
    labels = {cell.arm: (cell.label, cell.is_control) for cell in cells}
    table = Table("arm", "runs", "control", title=f"{len(cells)} runs into {settings.out}")
    for arm, count in runs.items():
        label, control = labels[arm]
        table.add_row(label, str(count), "yes" if control else "")
    return table
