"""Saves the arm that is kept: made again, checked against its run, an ordinary model directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sparsecraft.core import catalog
from sparsecraft.core.mask import Mask
from sparsecraft.lab.arms import Workbench
from sparsecraft.lab.assemble import assemble
from sparsecraft.lab.grid import Cell, first_seeds
from sparsecraft.lab.store import RunStore
from sparsecraft.model.checkpoints import read_settings, save


def keep_winner(bench: Workbench, store: RunStore, cells: Sequence[Cell]) -> dict[str, Any]:
    """Saves the arm that is chosen as a model directory; returns what the store notes of it."""
    store.write_part("finish", {})
    winner = assemble(store)["choice"]["winner"]
    cell = next((each for each in first_seeds(cells) if each.arm == winner), None)
    if cell is None:
        return {"problems": []}
    target = store.directory / "model"
    problem = _save(bench, store, cell, target)
    if problem:
        return {"problems": [problem]}
    return {
        "problems": [],
        "saved_arm": cell.arm,
        "saved_to": str(target),
        "saved_lines": _loading_lines(bench, cell, target),
    }


def _save(bench: Workbench, store: RunStore, cell: Cell, target: Path) -> str:
    """Writes the model directory of a cell; returns what stands in the way, or nothing."""
    settings: dict[str, Any] = {"compared": cell.config(), "task": bench.task.name}
    model, mask, form = bench.dense, None, "plain"
    if cell.kind == "sparse":
        made = bench.make(cell, store)
        stored = store.get(bench.config(cell), mask=True).mask
        mask = made.mask
        if mask is None or stored is None or not _equal(mask, stored):
            return (
                f"{cell.label} was made again from its settings and came out different, so it was "
                "not saved; the machine or the versions may have changed since its run"
            )
        model, settings["method"] = made.model, catalog.describe(cell.build())
    elif cell.kind.startswith("compact"):
        model = bench.student(store)
        facts = store.get(bench.config(Cell(kind="compact"))).metrics
        form = facts["form"] if hasattr(model, "config") else "plain"
        settings["units"] = facts["units"]
    save(
        model,
        target,
        mask=mask,
        settings=settings,
        form="compact" if form == "compact" else "plain",
        overwrite=True,
        extras=bench.task.save_extras,
    )
    return ""


def _equal(mask: Mask, other: Mask) -> bool:
    return set(mask) == set(other) and all(torch.equal(mask[name], other[name]) for name in mask)


def _loading_lines(bench: Workbench, cell: Cell, target: Path) -> list[str]:
    if not hasattr(bench.dense, "config"):
        loader = "its weights alone, model.safetensors: the class is your own"
    elif read_settings(target).get("form") == "compact":
        loader = "load it with sparsecraft.load"
    else:
        loader = "load it with from_pretrained or sparsecraft.load"
    lines = [f"Saved to {target} ({loader})."]
    if cell.kind == "sparse":
        lines.append(
            "That folder is plain, zeros included, so that anything loads it; the bytes named are "
            "those of the packed form: sparsecraft.model.packed.save_packed(model, path)."
        )
    if cell.kind.endswith("int8"):
        lines.append(
            "int8 is two lines after loading: from torch.ao.quantization import quantize_dynamic; "
            "model = quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)"
        )
    return lines
