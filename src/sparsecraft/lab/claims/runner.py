"""Runs claims, one or all, and prints what they find; every claim is treated alike."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparsecraft.core.errors import InvalidValue
from sparsecraft.lab.claims.catalog import claim_numbers, load_claim
from sparsecraft.lab.claims.cells import Cells, Progress
from sparsecraft.lab.claims.claim import Budget, Claim, check_budget
from sparsecraft.lab.claims.outcome import outcome, write_outcome, write_scoreboard
from sparsecraft.lab.evidence.table import markdown

DEFAULT_FOLDER = Path("reproductions")


def reproduce(
    number: int | str,
    budget: str = "small",
    seeds: int | Sequence[int] | None = None,
    out: Path | str | None = None,
    jobs: int = 1,
    progress: bool = True,
) -> dict[str, Any]:
    """Runs a paper's claim at small scale, prints its table and verdict, and returns them.

    Cells (an arm with a seed) that an earlier run has finished are taken from `out`, so that a
    killed run goes on where it stopped.

    Args:
        number: The paper's number, or "all" for every claim and a scoreboard.
        budget: smoke (seconds, no verdict), small (minutes) or full (the whole grid).
        seeds: How many, or which ones; by default as many as the claim says.
        out: Folder for the results; by default "reproductions" where you are.
        jobs: How many cells run at once, each on one core.
        progress: Whether to print the cells as they finish, the table and the verdict.

    Returns:
        What verdict.json holds; for "all", what scoreboard.json holds.

    Raises:
        UnknownName: If there is no such claim or budget; the message lists those that exist.
        InvalidValue: If `seeds` or `jobs` is not allowed.
    """
    chosen = check_budget(budget)
    folder = DEFAULT_FOLDER if out is None else Path(out)
    if str(number).strip().lower() != "all":
        return run_claim(load_claim(number), chosen, seeds, folder, jobs, progress)
    claims = [load_claim(each) for each in claim_numbers()]
    found = [run_claim(claim, chosen, seeds, folder, jobs, progress) for claim in claims]
    scoreboard, table = write_scoreboard(found, folder, chosen)
    if progress:
        _print(table)
    return scoreboard


def run_claim(
    claim: Claim,
    budget: Budget,
    seeds: int | Sequence[int] | None,
    out: Path,
    jobs: int = 1,
    progress: bool = True,
) -> dict[str, Any]:
    """Runs one claim, writes its folder `NN-budget` inside `out`, and returns its outcome.

    Args:
        claim: The claim.
        budget: See `reproduce`.
        seeds: See `reproduce`.
        out: Folder of all results.
        jobs: See `reproduce`.
        progress: See `reproduce`.
    """
    if jobs < 1:
        raise InvalidValue(f"jobs={jobs} is not allowed: give at least 1")
    chosen = _seeds(claim.seeds[budget] if seeds is None else seeds)
    folder = out / f"{claim.number:02d}-{budget}"
    begin = time.perf_counter()
    with _progress_bar(claim, budget, shown=progress) as tell:
        cells = Cells(
            directory=folder / "cells" / f"v{claim.version}",
            version=f"claim {claim.number}, version {claim.version}",
            jobs=jobs,
            progress=tell,
        )
        rows = claim.run(budget, chosen, cells)
    seconds = {"wall": time.perf_counter() - begin, "cells": cells.seconds()}
    found = outcome(claim, budget, chosen, rows, seconds)
    write_outcome(claim, found, rows, folder)
    if progress:
        _print(markdown(rows))
        _print(found["line"])
    return found


def _seeds(given: int | Sequence[int]) -> list[int]:
    chosen = list(range(given)) if isinstance(given, int) else list(given)
    if not chosen or len(set(chosen)) < len(chosen) or min(chosen) < 0:
        raise InvalidValue(
            f"seeds={given!r} is not allowed: give how many, at least 1, or different seeds of at "
            "least 0"
        )
    return chosen


@contextmanager
def _progress_bar(claim: Claim, budget: Budget, *, shown: bool) -> Iterator[Progress | None]:
    if not shown:
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True)) as bar:
        task = bar.add_task(f"claim {claim.number:02d}, {budget}", total=None)

        def tell(cell: str, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, description=cell)

        yield tell


def _print(text: str) -> None:
    from rich.console import Console

    Console(markup=False, highlight=False, soft_wrap=True).print(text)
