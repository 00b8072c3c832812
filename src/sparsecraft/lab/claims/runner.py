"""Runs claims, one or all, and prints what they find; every claim is treated alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparsecraft.core.errors import InvalidValue
from sparsecraft.lab.claims.catalog import claim_numbers, load_claim
from sparsecraft.lab.claims.cells import Cells, Progress, kept
from sparsecraft.lab.claims.claim import Budget, Claim, check_budget
from sparsecraft.lab.claims.outcome import (
    broken,
    outcome,
    remarked,
    write_outcome,
    write_scoreboard,
)
from sparsecraft.lab.claims.together import Standing, run_together
from sparsecraft.lab.evidence.table import markdown
from sparsecraft.lab.pool import check_pool, reason

DEFAULT_FOLDER = Path("reproductions")


def reproduce(
    number: int | str,
    budget: str = "small",
    seeds: int | Sequence[int] | None = None,
    out: Path | str | None = None,
    jobs: int = 1,
    progress: bool = True,
    backend: str = "loky",
) -> dict[str, Any]:
    """Runs a paper's claim at small scale, prints its table and verdict, and returns them.

    Cells (an arm with a seed) that an earlier run has finished are taken from `out`, so that a
    killed run goes on where it stopped.

    Args:
        number: The paper's number, or "all" for every claim and a scoreboard.
        budget: smoke (seconds, no verdict), small (minutes) or full (the whole grid).
        seeds: How many, or which ones; by default as many as the claim says.
        out: Folder for the results; by default "reproductions" where you are.
        jobs: How many cells run at once, each on one core; for "all", cells of any claim.
        progress: Whether to print the cells as they finish, the table and the verdict.
        backend: "loky" runs them on this machine, "ray" on a Ray cluster.

    Returns:
        What verdict.json holds; for "all", what scoreboard.json holds.

    Raises:
        UnknownName: If there is no such claim, budget or back end; the message lists those that
            exist.
        InvalidValue: If `seeds` or `jobs` is not allowed.
    """
    chosen = check_budget(budget)
    check_pool(jobs, backend)
    folder = DEFAULT_FOLDER if out is None else Path(out)
    if str(number).strip().lower() == "all":
        return run_all(chosen, seeds, folder, jobs, progress, backend)
    return run_claim(load_claim(number), chosen, seeds, folder, jobs, progress, backend)


def run_claim(
    claim: Claim,
    budget: Budget,
    seeds: int | Sequence[int] | None,
    out: Path,
    jobs: int = 1,
    progress: bool = True,
    backend: str = "loky",
) -> dict[str, Any]:
    """Runs one claim, writes its folder `NN-budget` inside `out`, and returns its outcome.

    Args:
        claim: The claim.
        budget: See `reproduce`.
        seeds: See `reproduce`.
        out: Folder of all results.
        jobs: See `reproduce`.
        progress: See `reproduce`.
        backend: See `reproduce`.
    """
    check_pool(jobs, backend)
    chosen = _seeds(claim.seeds[budget] if seeds is None else seeds)
    folder = _folder(claim, budget, out)
    begin = time.perf_counter()
    with _progress_bar(f"claim {claim.number:02d}, {budget}", shown=progress) as tell:
        cells = Cells(**kept(claim, folder), jobs=jobs, backend=backend, progress=tell)
        rows = claim.run(budget, chosen, cells)
    seconds = {"wall": time.perf_counter() - begin, "cells": cells.seconds()}
    found = outcome(claim, budget, chosen, rows, seconds)
    write_outcome(claim, found, rows, folder)
    if progress:
        _print(markdown(rows))
        _print(found["line"])
        if remarked(found):
            _print(remarked(found))
    return found


def run_all(
    budget: Budget,
    seeds: int | Sequence[int] | None,
    out: Path,
    jobs: int = 1,
    progress: bool = True,
    backend: str = "loky",
    numbers: Sequence[int] | None = None,
    load: Callable[[int], Claim] = load_claim,
) -> dict[str, Any]:
    """Runs many claims, their cells in one pool, and returns the scoreboard.

    The scoreboard is written after each claim. A claim that raises, or whose file cannot be
    imported, stands on it with its reason; the same call tries it again.

    Args:
        budget: See `reproduce`.
        seeds: See `reproduce`.
        out: Folder of all results.
        jobs: See `reproduce`.
        progress: See `reproduce`.
        backend: See `reproduce`.
        numbers: Which claims; by default all that exist.
        load: Gives the claim of a number.
    """
    wanted = claim_numbers() if numbers is None else list(numbers)
    found: list[dict[str, Any]] = []
    standings: list[Standing] = []
    for number in wanted:
        try:
            claim = load(number)
        except Exception as error:
            found.append(broken(number, budget, reason(error)))
            continue
        chosen = _seeds(claim.seeds[budget] if seeds is None else seeds)
        standings.append(Standing(claim, budget, chosen, _folder(claim, budget, out)))

    def scoreboard() -> tuple[dict[str, Any], str]:
        finished = {each["number"] for each in found}
        waiting = [number for number in wanted if number not in finished]
        return write_scoreboard(found, out, budget, waiting)

    def over(result: dict[str, Any]) -> None:
        found.append(result)
        scoreboard()
        if progress:
            _print(result["line"])

    with _progress_bar(f"{len(wanted)} claims, {budget}", shown=progress) as tell:
        run_together(standings, jobs=jobs, backend=backend, over=over, tell=tell)
    board, table = scoreboard()
    if progress:
        _print(table)
    return board


def _folder(claim: Claim, budget: Budget, out: Path) -> Path:
    return out / f"{claim.number:02d}-{budget}"


def _seeds(given: int | Sequence[int]) -> list[int]:
    chosen = list(range(given)) if isinstance(given, int) else list(given)
    if not chosen or len(set(chosen)) < len(chosen) or min(chosen) < 0:
        raise InvalidValue(
            f"seeds={given!r} is not allowed: give how many, at least 1, or different seeds of at "
            "least 0"
        )
    return chosen


@contextmanager
def _progress_bar(title: str, *, shown: bool) -> Iterator[Progress | None]:
    if not shown:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, TextColumn("{task.description}"), console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None)

        def tell(cell: str, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, description=cell)

        yield tell


def _print(text: str) -> None:
    from rich.console import Console

    Console(markup=False, highlight=False, soft_wrap=True).print(text)
