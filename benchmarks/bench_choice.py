"""The runtime's choice on random layers, judged by a second measurement.

Each cell is a layer of random shape and density, a number of rows, and the types that may be
stored. The runtime measures and chooses; then every candidate within the tolerance is timed again,
in turn and with weights from memory. Asked: within 5 % of the best path in 95 % of the cells, never
more than 2 % slower than dense as it was, and sparse wherever that gains 1.2x or more over the best
dense path. The spread of the second measurement is printed, because one cell cannot be judged more
finely than that.

Run: python benchmarks/bench_choice.py [--quick] [--cells 300] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsecraft.kernels.linear import native_status
from sparsecraft.model.runtime.candidates import FORMATS
from sparsecraft.model.runtime.chooser import Settings, contenders, decided, measured
from sparsecraft.model.runtime.facts import LayerFacts
from sparsecraft.model.runtime.layers import LinearLayer
from sparsecraft.model.runtime.stores import Stores
from sparsecraft.model.runtime.timing import CacheFlush, Contender, clock_of, measure_in_turns

TYPES = (("float32",), ("float32", "bfloat16"), ("float32", "bfloat16", "int8"))
DENSE = ("torch", "dense", "by_input")
NEAR, SLOWER, WORTH, SHARE = 1.05, 1.02, 1.2, 0.95
TOLERANCE = 0.02


@dataclass(frozen=True)
class Cell:
    """A layer to choose for."""

    outputs: int
    inputs: int
    density: float
    rows: int
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What was chosen, and what the second measurement says: seconds by candidate."""

    cell: Cell
    chosen: str
    seconds: dict[str, float]
    spread: float

    @property
    def over_best(self) -> float:
        """Time of the choice over that of the best candidate."""
        return self.seconds[self.chosen] / min(self.seconds.values())

    @property
    def over_dense(self) -> float:
        """Time of the choice over that of the layer as it was."""
        return self.seconds[self.chosen] / self.seconds["torch float32"]

    @property
    def sparse_gain(self) -> float:
        """Time of the best dense path over that of the best sparse one; 0 without one."""
        dense = [t for name, t in self.seconds.items() if name.split()[0] in DENSE]
        sparse = [t for name, t in self.seconds.items() if name.split()[0] not in DENSE]
        return min(dense) / min(sparse) if sparse else 0.0

    @property
    def is_sparse(self) -> bool:
        """Whether a sparse path was chosen."""
        return self.chosen.split()[0] not in DENSE


def drawn(count: int, seed: int, largest: int) -> list[Cell]:
    """Returns random cells: sizes on a logarithmic scale, densities evenly."""
    stream = random.Random(seed)
    cells = []
    while len(cells) < count:
        outputs, inputs = (int(2 ** stream.uniform(7, 13.4)) // 8 * 8 for _ in range(2))
        if outputs * inputs > largest:
            continue
        density = stream.choice([1.0, *(i / 20 for i in range(1, 20))])
        rows = stream.choice([1, 1, 1, 2, 4, 8, 16, 32])
        cells.append(Cell(outputs, inputs, density, rows, stream.choice(TYPES)))
    return cells


def tried(cell: Cell, seed: int, rounds: int) -> Outcome:
    """Returns the runtime's choice for a cell and the second measurement."""
    stream = torch.Generator().manual_seed(seed)
    module = nn.Linear(cell.inputs, cell.outputs, bias=False)
    weight = torch.randn(cell.outputs, cell.inputs, generator=stream)
    if cell.density < 1:
        weight *= torch.rand(weight.shape, generator=stream) < cell.density
    module.weight = nn.Parameter(weight, requires_grad=False)
    inputs = torch.randn(32, cell.inputs, generator=stream)
    facts = LayerFacts.of(LinearLayer(("layer",), module), inputs)
    settings = Settings(
        batch_sizes=(cell.rows,),
        formats=FORMATS,
        dtypes=cell.dtypes,
        tolerance=TOLERANCE,
        memory="fast",
    )
    stores = Stores(facts)
    times = measured(stores, settings, measure_in_turns, cold=True, seconds=1.0)
    plan = decided(stores, times, settings)
    rivals, _ = contenders(stores, settings, cell.rows)
    allowed = {
        name: rival
        for name, rival in rivals.items()
        if name == "torch float32" or facts.errors[name] <= TOLERANCE
    }
    rows = inputs.repeat(-(-cell.rows // 32), 1)[: cell.rows].contiguous()
    seconds, spread = again(allowed, rows, rounds)
    return Outcome(cell, plan.choices[0].chosen, seconds, spread)


def again(
    rivals: dict[str, Contender], x: torch.Tensor, rounds: int
) -> tuple[dict[str, float], float]:
    """Returns the medians of an independent measurement, and the spread of the first rival."""
    flush, clock = CacheFlush(), clock_of(x)
    spent: dict[str, list[float]] = {name: [] for name in rivals}
    with torch.inference_mode():
        for turn in range(rounds):
            for name in rivals if turn % 2 else reversed(rivals):
                flush()
                rivals[name].rehearse(x)
                begin = clock()
                rivals[name].run(x)
                spent[name].append(clock() - begin)
    first = statistics.quantiles(next(iter(spent.values())), n=4, method="inclusive")
    medians = {name: statistics.median(times) for name, times in spent.items()}
    return medians, (first[2] - first[0]) / first[1]


def judged(outcomes: list[Outcome]) -> list[tuple[str, str, bool]]:
    """Returns what was asked, what was found, and whether it is met."""
    count = len(outcomes)
    near = sum(outcome.over_best <= NEAR for outcome in outcomes)
    slower = [o for o in outcomes if o.chosen != "torch float32" and o.over_dense > SLOWER]
    worth = [outcome for outcome in outcomes if outcome.sparse_gain >= WORTH]
    missed = [outcome for outcome in worth if not outcome.is_sparse]
    worst = max(outcome.over_best for outcome in outcomes)
    return [
        (
            f"within {NEAR - 1:.0%} of the best in {SHARE:.0%} of cells",
            f"{near} of {count} ({near / count:.1%}), worst {worst:.2f}x",
            near >= SHARE * count,
        ),
        (f"never more than {SLOWER - 1:.0%} slower than dense", f"{len(slower)} are", not slower),
        (
            f"sparse wherever it gains {WORTH}x",
            f"{len(worth) - len(missed)} of {len(worth)}",
            not missed,
        ),
    ]


def main() -> None:
    """Tries the cells, prints those that miss, and judges."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int)
    parser.add_argument("--quick", action="store_true", help="20 cells, small ones")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    status = native_status()
    print(f"threads {options.threads}, native {status['isa']} {status['features']}")
    cells = drawn(
        options.cells or (20 if options.quick else 300),
        options.seed,
        2**20 if options.quick else 2**24,
    )
    outcomes: list[Outcome] = []
    for index, cell in enumerate(cells):
        outcome = tried(cell, options.seed + index, options.rounds)
        outcomes.append(outcome)
        if sys.stderr.isatty() or index % 25 == 24:
            print(f"{index + 1} of {len(cells)} cells", file=sys.stderr, flush=True)
        missed = outcome.sparse_gain >= WORTH and not outcome.is_sparse
        if outcome.over_best > NEAR or missed:
            best = min(outcome.seconds, key=outcome.seconds.__getitem__)
            print(
                f"{cell.outputs:5d} x {cell.inputs:<5d} density {cell.density:.2f} rows "
                f"{cell.rows:2d} {cell.dtypes[-1]:9s} chose {outcome.chosen}, best {best}: "
                f"{outcome.over_best:.2f}x its time; {outcome.over_dense:.2f} of dense; "
                f"spread {outcome.spread:.0%}",
                flush=True,
            )
    kinds: dict[str, int] = {}
    for outcome in outcomes:
        kinds[outcome.chosen] = kinds.get(outcome.chosen, 0) + 1
    print(", ".join(f"{n} x {name}" for name, n in sorted(kinds.items(), key=lambda k: -k[1])))
    print(f"median spread of a timed call: {statistics.median(o.spread for o in outcomes):.0%}")
    verdicts = judged(outcomes)
    for asked, found, met in verdicts:
        print(f"asked: {asked}: {found}: {'met' if met else 'NOT met'}")
    if options.json:
        rows: list[dict[str, Any]] = [
            {**vars(o.cell), "chosen": o.chosen, "seconds": o.seconds, "spread": o.spread}
            for o in outcomes
        ]
        options.json.write_text(json.dumps({"verdicts": verdicts, "cells": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
