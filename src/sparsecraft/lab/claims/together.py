"""Many claims at once: their cells share one pool, and a claim that raises stands alone.

A claim's `run` asks for cells. Here it is first asked which ones are not there yet; those of all
claims are measured together, and when the last one of a claim is in, its `run` is called anew and
finds them all. A claim that asks again, because later cells depend on earlier ones, joins the next
round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparsecraft.lab.claims.cells import Cell, Cells, Measure, kept, record
from sparsecraft.lab.claims.claim import Budget, Claim
from sparsecraft.lab.claims.outcome import failure, outcome, write_outcome
from sparsecraft.lab.evidence.table import Row
from sparsecraft.lab.pool import Answer, answers, reason

Told = Callable[[dict[str, Any]], None]
"""Called with the outcome of each claim that is over."""
Tell = Callable[[str, int, int], None]
"""Called with (cell, cells done, cells known so far)."""


class CellsWanted(Exception):
    """Leaves a claim's `run`: these cells are not there yet. Never seen by a caller."""

    def __init__(self, store: Cells, measure: Measure, cells: Sequence[Cell]) -> None:
        super().__init__()
        self.store = store
        self.measure = measure
        self.cells = list(cells)


class NamedCells(Cells):
    """Cells that are named instead of measured."""

    def _finish(self, measure: Measure, waiting: Sequence[Cell]) -> Iterator[Cell]:
        if waiting:
            raise CellsWanted(self, measure, waiting)
        return iter(())


@dataclass
class Standing:
    """Where one claim of many stands.

    Args:
        claim: The claim.
        budget: Its budget.
        seeds: Its seeds.
        folder: Of its results.
        wanted: Cells that it waits for.
        store: Where it asked for them; it may have its own version.
        measure: What measures them.
        outcome: What it came to, once it is over.
    """

    claim: Claim
    budget: Budget
    seeds: list[int]
    folder: Path
    wanted: list[Cell] = field(default_factory=list)
    store: Cells | None = None
    measure: Measure | None = None
    outcome: dict[str, Any] | None = None
    begin: float = field(default_factory=time.perf_counter)

    def advance(self) -> None:
        """Lets the claim run until it is over or wants cells."""
        cells = NamedCells(**kept(self.claim, self.folder))
        try:
            rows = self.claim.run(self.budget, self.seeds, cells)
            self._end(rows, cells)
        except CellsWanted as request:
            self.wanted, self.measure, self.store = request.cells, request.measure, request.store
        except Exception as error:
            self.fail(error)

    def take(self, cell: Cell, answer: Answer[Any]) -> None:
        """Keeps a cell that was measured, or fails with its error."""
        if answer.error is not None or self.store is None:
            self.fail(answer.error or RuntimeError("a cell came that nobody asked for"))
            return
        self.store.keep(cell, answer.value)
        self.wanted.remove(cell)

    def fail(self, error: Exception) -> None:
        """Ends the claim with the reason; what it has measured is kept."""
        if self.outcome is None:
            self.wanted = []
            self.outcome = failure(self.claim, self.budget, self.seeds, reason(error))

    def _end(self, rows: Sequence[Row], cells: Cells) -> None:
        self.wanted = []
        seconds = {"wall": time.perf_counter() - self.begin, "cells": cells.seconds()}
        found = outcome(self.claim, self.budget, self.seeds, rows, seconds)
        write_outcome(self.claim, found, rows, self.folder)
        self.outcome = found


def run_together(
    standings: Sequence[Standing],
    *,
    jobs: int = 1,
    backend: str = "loky",
    over: Told | None = None,
    tell: Tell | None = None,
) -> None:
    """Runs claims until each is over; their `outcome` says what they came to.

    Args:
        standings: Each with another claim.
        jobs: How many cells run at once, whichever claims they belong to.
        backend: "loky" or "ray".
        over: Called after each claim that is over.
        tell: Called after each cell.
    """
    done = 0
    for standing in standings:
        _advance(standing, over)
    while waiting := [each for each in standings if each.wanted]:
        known = done + sum(len(each.wanted) for each in waiting)
        for standing, cell, answer in _measured(waiting, jobs, backend):
            done += 1
            if tell is not None:
                tell(f"{standing.claim.number:02d} {cell.arm}, seed {cell.seed}", done, known)
            if standing.outcome is not None:
                continue  # failed while this cell was under way
            standing.take(cell, answer)
            if standing.outcome is not None:
                _report(standing, over)
            elif not standing.wanted:
                _advance(standing, over)


def _measured(
    waiting: Sequence[Standing], jobs: int, backend: str
) -> Iterator[tuple[Standing, Cell, Answer[Any]]]:
    """Yields every wanted cell with its answer; those of a claim that has failed are left out."""

    def wanted() -> Iterator[tuple[int, Measure, Cell]]:
        for place, standing in enumerate(waiting):
            for cell in list(standing.wanted):
                if standing.outcome is None and standing.measure is not None:
                    yield place, standing.measure, cell

    for answer in answers(_measure, wanted(), jobs=jobs, backend=backend):
        place, _, cell = answer.argument
        yield waiting[place], cell, answer


def _measure(argument: tuple[int, Measure, Cell]) -> dict[str, Any]:
    _, measure, cell = argument
    return record(measure, cell)


def _advance(standing: Standing, over: Told | None) -> None:
    standing.advance()
    if standing.outcome is not None:
        _report(standing, over)


def _report(standing: Standing, over: Told | None) -> None:
    if over is not None and standing.outcome is not None:
        over(standing.outcome)
