"""From a finished training to its physically smaller model: made, compared, trained a little more.

Steps after the removal belong to the method's budget (Liu and Wang, 2023, lesson 6): they are in
the operations of its row, and the note says that the controls had fewer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparsecraft.core.errors import InvalidValue, SparsityError
from sparsecraft.core.kinds import InTraining
from sparsecraft.core.mask import Mask
from sparsecraft.lab.compact_form import TOLERANCE, CompactForm, compact_form, removes_units
from sparsecraft.lab.forms import packed_size, plain_size
from sparsecraft.lab.report.values import percent
from sparsecraft.lab.tasks.base import Task, to_device
from sparsecraft.lab.training import Trained, TrainSettings, train_task
from sparsecraft.lab.training_record import quality
from sparsecraft.methods.weights.network_slimming import SparseScales
from sparsecraft.model.flops import profile_flops

Tell = Callable[[int, int, float], None]


@dataclass(frozen=True, kw_only=True)
class Removal:
    """What is done once the zeros are there.

    Args:
        finetune_steps: Optimiser steps that the smaller model is trained on.
        absorb_bias: For methods that press on scales: see `prune_channels`.
    """

    finetune_steps: int = 0
    absorb_bias: bool = False

    def check(self, method: InTraining) -> None:
        """Raises InvalidValue where the method removes nothing that this could follow."""
        name = method.info.name
        if self.finetune_steps and not removes_units(method):
            raise InvalidValue(
                f"--finetune-steps trains the smaller model on after whole channels or neurons "
                f"have gone; {name} does not remove any. Leave it out, or train longer (--steps)."
            )
        if self.absorb_bias and not isinstance(method, SparseScales):
            raise InvalidValue(
                f"--absorb-bias is for methods that remove channels by their scales, such as "
                f"network_slimming; {name} does not. Leave it out."
            )


def made_smaller(
    task: Task,
    trained: Trained,
    settings: TrainSettings,
    removal: Removal,
    flops: dict[str, float],
    *,
    seed: int,
    checkpoint: Path | None = None,
    checkpoint_every: int = 500,
    progress: Tell | None = None,
) -> tuple[CompactForm | None, dict[str, Any] | None, list[str]]:
    """Returns the smaller form of a trained model, its record, and notes; None, None without one.

    Args:
        task: What it was trained on.
        trained: The finished sparse training.
        settings: How it was trained, and how it is trained on.
        removal: What is done once the zeros are there.
        flops: Of the sparse training.
        seed: Of the batches.
        checkpoint: File of the state of the further training; None keeps none.
        checkpoint_every: Steps from one checkpoint to the next.
        progress: Told of every step.
    """
    form, notes = _form(trained, removal)
    if form is None:
        return None, None, notes
    found = _record(task, trained, form, flops, seed)
    if form.difference > TOLERANCE and not removal.finetune_steps:
        notes.append(_differs(form, removal))
    if not removal.finetune_steps:
        return form, found, notes
    longer = train_task(
        task,
        None,
        _longer(settings, removal),
        seed=seed,
        model=form.model,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        progress=progress,
    )
    steps = removal.finetune_steps
    examples = settings.accumulate * longer.processes
    smaller = profile_flops(form.model, to_device(trained.batch, trained.model)).total
    total = flops["total"] + 3 * examples * smaller * steps
    found |= quality(task, longer.model)
    found |= {
        "finetune_steps": steps,
        "packed_bytes": found["bytes"],
        "flops": {"total": total, "relative": total / flops["dense"]},
        "seconds": trained.seconds + longer.seconds,
        "losses": [[settings.steps + step, loss] for step, loss in longer.losses],
    }
    notes.append(f"the smaller model trained {steps} steps more than the controls")
    return replace(form, model=longer.model, mask=Mask({})), found, notes


def _form(trained: Trained, removal: Removal) -> tuple[CompactForm | None, list[str]]:
    """Returns the smaller model as it comes out of the removal, and notes."""
    report = trained.report
    assert report is not None
    if report.form != "plain":
        return None, []
    example = to_device(trained.batch, trained.model)
    try:
        form = compact_form(
            trained.model, report.method, report.mask, example, absorb_bias=removal.absorb_bias
        )
    except SparsityError as error:
        wanted = removes_units(report.method)
        return None, [f"no smaller model was made: {error}"] if wanted else []
    return form, [form.note] if form is not None and form.note else []


def _record(
    task: Task, trained: Trained, form: CompactForm, flops: dict[str, float], seed: int
) -> dict[str, Any]:
    """Returns what is written of the smaller model before any further training."""
    before = quality(task, form.model)
    example = to_device(trained.batch, trained.model)
    smaller, whole = (profile_flops(each, example).total for each in (form.model, trained.model))
    return {
        "seed": seed,
        **before,
        "before": {name: before[name] for name in ("validation", "test")},
        "parameters": form.parameters,
        "kept": form.kept,
        "bytes": plain_size(form.model),
        "packed_bytes": packed_size(form.model, form.mask),
        "difference": form.difference,
        "units": list(form.units),
        "forward_flops": smaller / whole,
        "finetune_steps": 0,
        "flops": dict(flops),
        "seconds": trained.seconds,
        "processes": trained.processes,
        "losses": [],
        "densities": [],
        "notes": [],
    }


def _differs(form: CompactForm, removal: Removal) -> str:
    """Returns the note on a smaller model that gives something else than the one with zeros."""
    return (
        f"the smaller model gives something else than the one with zeros (by up to "
        f"{percent(form.difference)} of the largest output): train it on (--finetune-steps)"
        + ("" if removal.absorb_bias else " or fold in what is dropped (--absorb-bias)")
    )


def _longer(settings: TrainSettings, removal: Removal) -> TrainSettings:
    """Returns how the smaller model is trained on: as before, for as many steps as asked."""
    optimizer = "adamw" if settings.optimizer == "adams" else settings.optimizer
    return replace(
        settings,
        steps=removal.finetune_steps,
        optimizer=optimizer,
        learning_rate=settings.peak,
    )
