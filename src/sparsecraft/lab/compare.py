"""Which method, how sparse, and what is really gained: the comparison, from settings to report.

Everything is validated before the first run. Runs go to a store that survives a kill; timings come
last, alone, in turns with dense; the arm that is kept is chosen on the validation half, made again
from its settings, checked against its stored mask and saved as a model directory.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.lab.arms import Workbench
from sparsecraft.lab.assemble import assemble, timing_name
from sparsecraft.lab.cells import Given, resolve_task, run_cell, run_in_processes
from sparsecraft.lab.choice import STATISTICS
from sparsecraft.lab.grid import Cell, first_seeds, plan, validate
from sparsecraft.lab.machine import machine
from sparsecraft.lab.progress import WorkBar
from sparsecraft.lab.report import print_summary, write_report
from sparsecraft.lab.settings import DEMO, CompareSettings
from sparsecraft.lab.store import RunStore, check_free, open_or_create
from sparsecraft.lab.tasks import Task
from sparsecraft.lab.timing import interleaved_latency
from sparsecraft.lab.winner import keep_winner

BATCH_SIZES = (1, 32)
TIMING_SECONDS = 3.0
"""What timing an arm is expected to take, for the progress bar."""


@dataclass(frozen=True)
class Compared:
    """A finished comparison.

    Args:
        record: What the report shows, as plain values.
        report: The HTML file.
        model: The folder of the arm that was kept, None where it could not be saved.
    """

    record: Mapping[str, Any]
    report: Path
    model: Path | None


def compare(
    model: str | Path | CompareSettings | None = None,
    *,
    task: str | Task | None = None,
    **settings: Any,
) -> Compared:
    """Compares methods, patterns and sparsities on one model, and writes the report.

    Args:
        model: A Hugging Face model directory or hub id, or all settings at once. Without one the
            demo runs.
        task: A named task, or one of your own, instead of a text.
        settings: The fields of `CompareSettings`.

    Returns:
        The record, and where report and model are.

    Raises:
        SparsityError: For settings that cannot work, before anything is run.
    """
    own = task if isinstance(task, Task) else None
    chosen = _settings(model, task, settings)
    actual = chosen.actual
    begin = time.monotonic()
    _check_device(chosen.device)
    cells = plan(actual)
    found = own or resolve_task(chosen)
    identity = actual.comparison(found.fingerprint)
    check_free(chosen.out, identity, overwrite=chosen.overwrite)
    bench = Workbench(found, chosen)
    validate(cells, bench.dense, actual, has_loss=found.kind != "embedding")
    console = Console(stderr=True)
    with open_or_create(chosen.out, identity, overwrite=chosen.overwrite) as store:
        reused = sum(run.metrics["seconds"]["total"] for run in store.runs())
        store.write_part("facts", _facts(bench, chosen))
        with WorkBar(_expected(cells, bench, 15.0), show=chosen.progress, console=console) as bar:
            try:
                _run_all(bench, store, cells, Given(found.fingerprint, own), bar)
                _time_all(bench, store, cells, bar)
            except KeyboardInterrupt:
                _say_stopped(store, cells, bench, console, show=chosen.progress)
                raise
        finish = keep_winner(bench, store, cells)
        store.write_part("finish", finish | {"seconds": time.monotonic() - begin + reused})
        record = assemble(store)
        report = write_report(record, store.directory)
    if chosen.progress:
        print_summary(record)
        Console().print(f"Report: {report}", markup=False, highlight=False, soft_wrap=True)
    saved = finish.get("saved_to")
    return Compared(record, report, Path(saved) if saved else None)


def redraw(directory: str | Path) -> Path:
    """Writes the report of a run store anew, finished or not, and returns its path.

    Raises:
        StoreError: If the folder is no run store, or one of another version.
    """
    store = RunStore.read(Path(directory))
    return write_report(assemble(store), store.directory)


def _settings(
    model: str | Path | CompareSettings | None, task: str | Task | None, given: Mapping[str, Any]
) -> CompareSettings:
    if isinstance(model, CompareSettings):
        if given or task is not None:
            raise InvalidValue("all settings were given at once: set the others there too")
        return model
    known = {field.name for field in dataclasses.fields(CompareSettings)}
    for name in given:
        if name not in known:
            raise UnknownName("setting", name, known)
    if isinstance(task, Task):
        if model is not None or "text" in given:
            raise InvalidValue("a task brings its own model and data: leave model and text out")
        task = task.name
    return CompareSettings(model=None if model is None else str(model), task=task, **given)


def _check_device(device: str) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise InvalidValue(f"device={device!r} is not known to torch: use cpu or cuda") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise InvalidValue("device='cuda' was asked for, but torch finds no usable GPU: use cpu")
    if kind not in ("cpu", "cuda"):
        raise InvalidValue(f"device={device!r} is not supported: use cpu or cuda")


def _run_all(
    bench: Workbench, store: RunStore, cells: Sequence[Cell], given: Given, bar: WorkBar
) -> None:
    """Runs every cell that the store does not have yet; the dense one first."""
    todo = [cell for cell in cells if not store.has(bench.config(cell))]
    if cells[0] not in todo:
        _reweigh(bench, store, cells, bar)
    for cell in cells:
        if cell not in todo:
            bar.skip(_piece(cell), f"{_text(cell)} (kept)")
    jobs = bench.settings.jobs
    side_by_side = [cell for cell in todo if cell.kind == "sparse"] if jobs > 1 else []
    for cell in todo:
        if cell not in side_by_side and cell.kind in ("dense", "int8"):
            _run_here(bench, store, cell, cells, bar)
    for cell in run_in_processes(bench.settings, given, store, side_by_side) if jobs > 1 else ():
        bar.complete(_piece(cell), _text(cell))
    for cell in todo:
        if cell not in side_by_side and cell.kind not in ("dense", "int8"):
            _run_here(bench, store, cell, cells, bar)


def _run_here(
    bench: Workbench, store: RunStore, cell: Cell, cells: Sequence[Cell], bar: WorkBar
) -> None:
    with bar.piece(_piece(cell), _text(cell)) as step:
        run_cell(bench, store, cell, step)
    if cell.kind == "dense":
        _reweigh(bench, store, cells, bar)


def _reweigh(bench: Workbench, store: RunStore, cells: Sequence[Cell], bar: WorkBar) -> None:
    """Tells the bar how long an evaluation takes, now that the dense one is known."""
    took = store.get(bench.config(cells[0])).metrics["seconds"]["total"]
    bar.reweigh(_expected(cells, bench, took))


def _expected(cells: Sequence[Cell], bench: Workbench, evaluation: float) -> dict[str, float]:
    """Returns the seconds that each piece of work should take."""
    settings = bench.settings
    training = settings.distill_seconds if settings.distill_steps is None else evaluation
    extra = {"compact": training}
    halves = ("int8", "compact-int8")
    pieces = {
        _piece(cell): extra.get(cell.kind, 0.0) + evaluation * (0.5 if cell.kind in halves else 1)
        for cell in cells
    }
    rounds = settings.rounds / 5
    return pieces | {f"time {cell.arm}": TIMING_SECONDS * rounds for cell in first_seeds(cells)}


def _piece(cell: Cell) -> str:
    return f"{cell.arm} {cell.seed}"


def _text(cell: Cell) -> str:
    return f"{cell.label}, seed {cell.seed}" if cell.seed else cell.label


def _time_all(bench: Workbench, store: RunStore, cells: Sequence[Cell], bar: WorkBar) -> None:
    """Times every arm beside dense; what was timed on this machine before is kept."""
    inputs = {size: bench.input(size) for size in BATCH_SIZES}
    here = machine(bench.settings.device, bench.settings.dtype)
    for cell in first_seeds(cells):
        known = store.read_part(timing_name(cell))
        if "failed" in store.get(bench.config(cell)).metrics or (
            known is not None and known["machine"] == here
        ):
            bar.skip(f"time {cell.arm}", f"timing {cell.label}")
            continue
        with bar.piece(f"time {cell.arm}", f"timing {cell.label}"):
            model = bench.rebuild(cell, store)
            found = interleaved_latency(bench.dense, model, inputs, rounds=bench.settings.rounds)
            latency = {str(size): asdict(each) for size, each in found.items()}
            store.write_part(timing_name(cell), {"machine": here, "latency": latency})


def _facts(bench: Workbench, settings: CompareSettings) -> dict[str, Any]:
    """Returns what the report says beside the runs."""
    task, actual = bench.task, bench.settings
    parameters = sum(p.numel() for p in bench.dense.parameters())
    size = sum(p.numel() * p.element_size() for p in bench.dense.parameters())
    return {
        "command": settings.command(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "methods": list(actual.methods),
        "patterns": list(actual.patterns),
        "max_drop": actual.max_drop,
        "prefer": actual.prefer,
        "statistic": statistic_of(task),
        "task": {
            "name": task.name,
            "description": task.description,
            "metric": task.metric,
            "higher_is_better": task.higher_is_better,
            "kind": task.kind,
        },
        "model": {
            "name": _model_name(bench, settings),
            "parameters": parameters,
            "targeted": bench.targets.numel,
            "bytes": size,
        },
        "targets": bench.targets.table(),
        "notes": ["Smoke setting: far too little data for conclusions."]
        if settings.setting == "smoke"
        else [],
    }


def statistic_of(task: Task) -> str:
    """Returns the key of `STATISTICS` that makes the task's number from its examples.

    Raises:
        InvalidValue: If none does.
    """
    probe = np.array([0.1, 0.5, 0.25])
    for name, statistic in STATISTICS.items():
        if np.isclose(task.aggregate(probe), statistic(probe)):
            return name
    raise InvalidValue(
        f"{task.name} aggregates its examples neither by their mean nor by exp of their mean, and "
        "compare knows no interval for that: let evaluate() return values whose mean is the metric"
    )


def _model_name(bench: Workbench, settings: CompareSettings) -> str:
    if settings.model is not None:
        return Path(settings.model).name
    source = getattr(bench.task, "model_dir", None)
    name = "all-MiniLM-L6-v2" if settings.task in (None, DEMO) and source is not None else ""
    return name or type(bench.dense).__name__


def _say_stopped(
    store: RunStore, cells: Sequence[Cell], bench: Workbench, console: Console, *, show: bool
) -> None:
    if show:
        done = sum(store.has(bench.config(cell)) for cell in cells)
        console.print(
            f"Stopped. {done} of {len(cells)} runs are kept in {store.directory}; the same command "
            "goes on with the others.",
            markup=False,
            highlight=False,
        )
