"""Measured latency of what a training made, beside dense: zeros alone, and the smaller model.

The models are read back from disk and timed in turns with a dense one, after all trainings, so that
nothing else of this process runs. A speed-up is claimed only where all rounds show it; zeros that
dense kernels multiply by bring none, whatever a round may say.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsecraft.core.errors import SparsityError
from sparsecraft.lab.finished import load_finished
from sparsecraft.lab.report.training_page import COMPACT, MASKED
from sparsecraft.lab.tasks.base import Task, to_device
from sparsecraft.lab.tasks.training import seeded
from sparsecraft.lab.timing import interleaved_latency
from sparsecraft.lab.training_loop import processes
from sparsecraft.model.files import write_atomic

BATCHES = (1, 32)
ROUNDS = 7
FOLDERS = {MASKED: "model", COMPACT: "compact"}
FILE = "latency.json"


def measured_latency(out: Path, task: Task) -> dict[str, Any]:
    """Returns the latency of the finished models in a folder; what was measured before is read.

    Args:
        out: The folder of the trainings, with `model` and where there is one `compact`.
        task: Makes the dense model and the inputs.

    Returns:
        "threads" and "device", and for each form batch size to the fields of `Latency`, or to
        "why" it could not be measured.
    """
    kept = out / FILE
    if kept.is_file():
        return json.loads(kept.read_text())
    device = processes().device
    dense = _dense(task).to(device).eval()
    inputs = {size: to_device(task.example_input(size), dense) for size in BATCHES}
    forms: dict[str, Any] = {}
    for name, folder in FOLDERS.items():
        if not (out / folder).is_dir():
            continue
        try:
            model = load_finished(out / folder, task).to(device).eval()
        except SparsityError as error:
            forms[name] = {"why": str(error)}
            continue
        found = interleaved_latency(dense, model, inputs, rounds=ROUNDS)
        forms[name] = {str(size): asdict(latency) for size, latency in found.items()}
    result = {"threads": torch.get_num_threads(), "device": str(device), "forms": forms}
    write_atomic(kept, json.dumps(result, indent=1) + "\n")
    return result


def _dense(task: Task) -> nn.Module:
    """Returns a model of the full shape; how fast it is does not depend on its weights."""
    build = getattr(task, "build", None)
    return task.load_model() if build is None else seeded(build, 0)
