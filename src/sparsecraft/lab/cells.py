"""Runs cells: makes a cell's model, evaluates it and writes the run, here or in other processes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from sparsecraft.core.errors import MissingDependency, NonFinite
from sparsecraft.lab.arms import Workbench
from sparsecraft.lab.forms import NotHere
from sparsecraft.lab.grid import Cell
from sparsecraft.lab.machine import environment, peak_memory_bytes
from sparsecraft.lab.progress import Step
from sparsecraft.lab.settings import DEMO, CompareSettings
from sparsecraft.lab.store import Run, RunStore
from sparsecraft.lab.tasks import Scores, Task, load_task, text_task


@dataclass(frozen=True)
class Given:
    """A task that travels to other processes: by name where it has one, else as it is.

    Args:
        fingerprint: Two tasks with one fingerprint are the same.
        task: None for a task that the settings name.
    """

    fingerprint: str
    task: Task | None = field(default=None, compare=False)


def resolve_task(settings: CompareSettings) -> Task:
    """Returns the task of the settings: the demo, a named one, or one made from a text.

    Raises:
        SparsityError: For an unknown name, or a model or text that cannot be used.
    """
    if settings.text is not None:
        return text_task(str(settings.model), settings.text)
    options: dict[str, Any] = {} if settings.model is None else {"model_dir": settings.model}
    name = settings.task or DEMO
    if settings.setting == "smoke" and name == DEMO:
        options["documents"] = 96
    return load_task(name, **options)


def run_cell(bench: Workbench, store: RunStore, cell: Cell, progress: Step | None = None) -> None:
    """Makes, evaluates and stores one cell; a model that breaks is stored as failed, with why.

    Args:
        bench: The task and its dense model.
        store: Where the run goes.
        cell: Which.
        progress: Called with (done, total), of training and evaluation together.
    """
    begin = time.perf_counter()
    trained, evaluated = _shares(cell, progress)
    examples: dict[str, Any] = {}
    mask, files = None, None
    try:
        made = bench.make(cell, store, trained)
        start = time.perf_counter()
        scores = bench.task.evaluate_both(made.model, evaluated)
        seconds = {
            "prune": made.facts["prune_seconds"],
            "evaluate": time.perf_counter() - start,
            "total": time.perf_counter() - begin,
        }
        metrics = {**_found(scores), **made.facts, "seconds": seconds}
        examples = {split: each.values for split, each in scores.items()}
        mask, files = made.mask, made.files
    except (NotHere, NonFinite) as error:
        metrics = {"failed": str(error), "seconds": {"total": time.perf_counter() - begin}}
    settings = bench.settings
    run = Run(
        config=bench.config(cell),
        environment=environment(settings.device, settings.dtype),
        metrics={**metrics, "peak_memory_bytes": peak_memory_bytes()},
        examples=examples,
        mask=mask,
    )
    store.write(run, files)


def run_in_processes(
    settings: CompareSettings, given: Given, store: RunStore, cells: Sequence[Cell]
) -> Iterator[Cell]:
    """Yields each cell when it is done, run side by side in `settings.jobs` processes.

    The threads of this process are shared out; a cell's outcome depends on its settings alone, and
    on the number of threads as far as the order of floating-point sums does.

    Raises:
        MissingDependency: If joblib is not installed.
    """
    try:
        from joblib import Parallel, delayed
    except ImportError as error:
        raise MissingDependency("joblib", "lab", "--jobs above 1") from error
    threads = max(1, torch.get_num_threads() // settings.jobs)
    work = Parallel(n_jobs=settings.jobs, return_as="generator_unordered")
    yield from work(
        delayed(_in_worker)(settings, given, store.directory, cell, threads) for cell in cells
    )


def _in_worker(
    settings: CompareSettings, given: Given, directory: Path, cell: Cell, threads: int
) -> Cell:
    torch.set_num_threads(threads)
    run_cell(_bench(settings, given), RunStore(directory), cell)
    return cell


@lru_cache(maxsize=1)
def _bench(settings: CompareSettings, given: Given) -> Workbench:
    """Returns the workbench of this process, made once."""
    return Workbench(given.task or resolve_task(settings), settings)


def _found(scores: dict[Any, Scores]) -> dict[str, Any]:
    """Returns the numbers of both halves; one that is not finite becomes None."""
    metrics: dict[str, Any] = {
        split: each.metric if math.isfinite(each.metric) else None for split, each in scores.items()
    }
    extra = {name: float(value) for name, value in scores["test"].extra.items()}
    return {**metrics, "extra": {k: v for k, v in extra.items() if math.isfinite(v)}}


def _shares(cell: Cell, progress: Step | None) -> tuple[Step | None, Step | None]:
    """Returns progress for making and for evaluating; training takes most of a compact cell."""
    if progress is None:
        return None, None
    share = 0.85 if cell.kind == "compact" else 0.0

    def trained(done: int, total: int) -> None:
        progress(round(1000 * share * done / max(1, total)), 1000)

    def evaluated(done: int, total: int) -> None:
        progress(round(1000 * (share + (1 - share) * done / max(1, total))), 1000)

    return trained, evaluated
