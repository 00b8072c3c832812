"""Cells of a claim, an arm with a seed each: run once, kept on disk, so that a killed run resumes.

A cell's file bears a hash of the claim's version and of the cell's settings. A changed claim thus
never takes up the numbers of an older one.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sparsecraft.core.errors import InvalidValue, NonFinite
from sparsecraft.lab.evidence.table import Row
from sparsecraft.lab.pool import answers
from sparsecraft.lab.tasks.cache import fingerprint
from sparsecraft.model.files import write_atomic

if TYPE_CHECKING:
    from sparsecraft.lab.claims.claim import Claim

Progress = Callable[[str, int, int], None]
"""Called with (cell, cells done, cells in all)."""


@dataclass(frozen=True)
class Cell:
    """One measurement to make.

    Args:
        arm: Name of the arm.
        seed: Seed of everything random in it.
        settings: Whatever else the measurement needs, in plain values.
    """

    arm: str
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)


Measure = Callable[[Cell], Mapping[str, float]]
"""Returns metric to value; a function of a module, so that other processes can import it."""


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Runs cells and keeps what they found.

    Each cell computes on one thread, so that its numbers depend neither on the machine's cores nor
    on how many cells run at once.

    Args:
        directory: Where one JSON file for each finished cell is kept.
        version: What must be equal for a kept cell to be taken up, such as the claim's version.
        jobs: How many cells run at once.
        backend: Where they run: "loky" on this machine, "ray" on a cluster.
        progress: Told of every finished cell.
    """

    directory: Path
    version: str
    jobs: int = 1
    backend: str = "loky"
    progress: Progress | None = None

    def rows(self, measure: Measure, cells: Sequence[Cell]) -> list[Row]:
        """Returns the rows of all cells, in their order; those on disk are not run again.

        Args:
            measure: Makes one measurement.
            cells: Each with another arm or seed.

        Raises:
            InvalidValue: If two cells share arm, seed and settings.
            NonFinite: If a measurement is NaN or infinite; the cell is not kept.
        """
        paths = [self.path(cell) for cell in cells]
        if len(set(paths)) < len(paths):
            raise InvalidValue("two cells are equal: give each its own arm, seed or settings")
        waiting = [cell for cell, path in zip(cells, paths, strict=True) if not path.exists()]
        done = len(cells) - len(waiting)
        for cell in self._finish(measure, waiting):
            done += 1
            if self.progress is not None:
                self.progress(f"{cell.arm}, seed {cell.seed}", done, len(cells))
        found = [json.loads(path.read_text()) for path in paths]
        return [
            Row(cell.arm, cell.seed, metric, value)
            for cell, each in zip(cells, found, strict=True)
            for metric, value in each["metrics"].items()
        ]

    def seconds(self) -> float:
        """Returns the seconds that all cells kept here took, whichever run they belong to."""
        return sum(
            json.loads(path.read_text())["seconds"] for path in self.directory.glob("*.json")
        )

    def path(self, cell: Cell) -> Path:
        """Returns the file of a cell."""
        key = fingerprint({"version": self.version, **asdict(cell)})
        name = re.sub(r"[^\w.=+-]+", "_", cell.arm).strip("_")
        return self.directory / f"{name}-{cell.seed}-{key}.json"

    def keep(self, cell: Cell, record: Mapping[str, Any]) -> None:
        """Writes what `record` returned for a cell."""
        write_atomic(self.path(cell), json.dumps(record, indent=1))

    def _finish(self, measure: Measure, waiting: Sequence[Cell]) -> Iterator[Cell]:
        for answer in answers(
            partial(record, measure), waiting, jobs=self.jobs, backend=self.backend
        ):
            self.keep(answer.argument, answer.result())
            yield answer.argument


def own_arms(rows: Iterable[Row]) -> list[Row]:
    """Returns the rows of cells that measured several arms, each under its arm's own name.

    Args:
        rows: With metrics named "arm | metric".

    Example:
        >>> own_arms([Row("all arms", 0, "wanda | bits per byte", 2.5)])
        [Row(arm='wanda', seed=0, metric='bits per byte', value=2.5)]
    """
    parted = ((row, *row.metric.rpartition(" | ")) for row in rows)
    return [Row(arm, row.seed, metric, row.value) for row, arm, _, metric in parted]


def kept(claim: Claim, folder: Path) -> dict[str, Any]:
    """Returns the directory and version of a claim's `Cells`, so that no other version's are used.

    Args:
        claim: The claim.
        folder: Of its results at one budget.
    """
    return {
        "directory": folder / "cells" / f"v{claim.version}",
        "version": f"claim {claim.number}, version {claim.version}",
    }


def record(measure: Measure, cell: Cell) -> dict[str, Any]:
    """Returns what is kept of a cell: itself, its metrics and the seconds that they took.

    Raises:
        NonFinite: If a metric is NaN or infinite.
    """
    begin = time.perf_counter()
    with _one_thread():
        metrics = {name: float(value) for name, value in measure(cell).items()}
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        raise NonFinite(f"{cell.arm}, seed {cell.seed}: {bad[0]} is {metrics[bad[0]]}")
    return {**asdict(cell), "metrics": metrics, "seconds": time.perf_counter() - begin}


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
