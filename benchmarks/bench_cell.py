"""What a cell of `compare` costs beyond its own pruning and evaluation. Limit: 1.1x.

The bare work is what a script of five lines would do: copy the dense model, prune it, evaluate it.
The cell does that, counts FLOPs, packs the weights and writes the run. Both take turns.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sparsecraft import prune
from sparsecraft.lab.arms import Workbench
from sparsecraft.lab.cells import run_cell
from sparsecraft.lab.grid import Cell
from sparsecraft.lab.settings import CompareSettings
from sparsecraft.lab.store import open_or_create
from sparsecraft.lab.tasks import load_task

ROUNDS = 3
SPARSITY = 0.5


def seconds(work: Callable[[], object]) -> float:
    """Returns the wall time of one call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def main() -> None:
    """Prints both medians and their ratio."""
    settings = CompareSettings()
    task = load_task("docs-retrieval")
    bench = Workbench(task, settings)

    def bare() -> None:
        model = copy.deepcopy(bench.dense)
        prune(model, "global_magnitude", sparsity=SPARSITY)
        task.evaluate_both(model.eval())

    def cell(seed: int) -> None:
        run_cell(bench, store, Cell(
            kind="sparse", method="global_magnitude", pattern="unstructured", sparsity=SPARSITY,
            seed=seed,
        ))  # fmt: skip

    bare()
    times: dict[str, list[float]] = {"bare": [], "cell": []}
    with tempfile.TemporaryDirectory() as folder:
        identity = settings.comparison(task.fingerprint)
        with open_or_create(Path(folder) / "store", identity, overwrite=False) as store:
            for seed in range(ROUNDS):
                times["bare"].append(seconds(bare))
                times["cell"].append(seconds(lambda seed=seed: cell(seed)))
    medians = {name: statistics.median(found) for name, found in times.items()}
    print(
        f"pruning and evaluation alone {medians['bare']:.2f} s, as a cell {medians['cell']:.2f} s"
    )
    print(f"ratio {medians['cell'] / medians['bare']:.3f} (limit 1.1)")


if __name__ == "__main__":
    main()
