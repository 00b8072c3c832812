"""Finished models of trainings, on disk and back, whether their class is a library's or a task's.

A Hugging Face model is an ordinary directory, which `sparsecraft.load` reads. A plain torch model
has no config that could say how it is built: its directory names the task that builds it, and which
units were kept, so that it is built anew, cut to its shapes and filled.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsecraft.core.errors import CheckpointError
from sparsecraft.core.mask import Mask
from sparsecraft.lab.compact_form import CompactForm
from sparsecraft.lab.tasks import load_task
from sparsecraft.lab.tasks.base import Task
from sparsecraft.lab.tasks.training import seeded
from sparsecraft.model.augmentation import augment
from sparsecraft.model.checkpoints import (
    check_safetensors,
    load,
    load_mask,
    read_settings,
    save,
)
from sparsecraft.model.compaction import compact

WEIGHTS = "model.safetensors"


def save_finished(
    model: nn.Module,
    directory: Path,
    task: Task,
    *,
    mask: Mask,
    form: str,
    training: Mapping[str, Any],
) -> Path:
    """Writes a finished model; its form and its task are in the settings beside it.

    Args:
        model: As the training left it.
        directory: Where; what is there is replaced.
        task: What it was trained on.
        mask: What was kept, by parameter name.
        form: "plain" or "augmented".
        training: What is known of the training.
    """
    return save(
        model,
        directory,
        mask=mask,
        settings={"training": dict(training), "task": task.name},
        form=form,  # type: ignore[arg-type]
        overwrite=True,
        extras=task.save_extras,
    )


def save_compact(form: CompactForm, directory: Path, task: Task) -> Path:
    """Writes a smaller model, with the units that it keeps.

    Args:
        form: The smaller model.
        directory: Where; what is there is replaced.
        task: What it was trained on.
    """
    units = {
        name: {"size": keep.numel(), "kept": keep.nonzero().reshape(-1).tolist()}
        for name, keep in form.keep.items()
        if not bool(keep.all())
    }
    return save(
        form.model,
        directory,
        mask=form.mask if len(form.mask) else None,
        settings={"task": task.name, "units": units},
        form="plain" if form.plain else "compact",
        overwrite=True,
        extras=task.save_extras,
    )


def load_finished(directory: str | Path, task: Task | None = None) -> nn.Module:
    """Returns a model that `sparsecraft train` saved, in any form, in evaluation mode.

    Args:
        directory: Such as `OUT/model` or `OUT/compact`.
        task: Builds a plain torch model; by default the task that the directory names.

    Raises:
        CheckpointError: If the directory is none of a finished training, or is damaged.
        UnknownName: If it names a task that is not known.
    """
    path = Path(directory)
    if (path / "config.json").is_file() or not path.is_dir():
        return load(path)
    settings = read_settings(path)
    if "task" not in settings or not (path / WEIGHTS).is_file():
        raise CheckpointError(
            f"{path} holds no finished model of a training: that is the folder `model` or "
            "`compact` in the --out of `sparsecraft train`"
        )
    task = load_task(settings["task"]) if task is None else task
    build = getattr(task, "build", None)
    if build is None:
        raise CheckpointError(f"{path}: the task {task.name} cannot build its model any more")
    model = _cut(seeded(build, 0), settings.get("units", {}), task)
    augment(model, settings.get("augmentations", {}))
    return _fill(model, path).eval()


def _cut(model: nn.Module, units: Mapping[str, Any], task: Task) -> nn.Module:
    """Returns the fresh model without the units that the saved one has lost."""
    if not units:
        return model
    keep = {}
    for name, each in units.items():
        keep[name] = torch.zeros(each["size"], dtype=torch.bool)
        keep[name][each["kept"]] = True
    return compact(model, keep, task.example_input(2))[0]


def _fill(model: nn.Module, path: Path) -> nn.Module:
    """Loads the weights and checks the masks beside them."""
    from safetensors.torch import load_model

    check_safetensors(path / WEIGHTS)
    try:
        missing, surplus = load_model(model, path / WEIGHTS, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{path / WEIGHTS} is of another model: {error}") from error
    # Constants that were folded in may have given a layer a bias of its own.
    absorbed = {name for name in surplus if name.endswith(".bias")}
    if missing or set(surplus) - absorbed:
        raise CheckpointError(
            f"{path / WEIGHTS} is of another model: missing {sorted(missing)[:3]}, surplus "
            f"{sorted(set(surplus) - absorbed)[:3]}"
        )
    if absorbed:
        _give_biases(model, path, absorbed)
    mask = load_mask(path)
    if mask is not None:
        mask.verify(dict(model.named_parameters()))
    return model


def _give_biases(model: nn.Module, path: Path, names: set[str]) -> None:
    from safetensors.torch import load_file

    state = load_file(path / WEIGHTS)
    for name in names:
        owner = model.get_submodule(name.rpartition(".")[0])
        owner.bias = nn.Parameter(state[name])
