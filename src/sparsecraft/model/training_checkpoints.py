"""Checkpoints of a training: one file with everything to go on, written whole or not at all.

The weights in it are the raw ones of the moment, which a method may turn into others before it
computes. The file says so in its first entry, and `sparsecraft.load` refuses it as a model.
"""

from __future__ import annotations

import io
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer

from sparsecraft.core.errors import CheckpointError
from sparsecraft.model.files import write_atomic
from sparsecraft.model.sparsifier import Sparsifier

MARKER = "sparsecraft training checkpoint: raw weights, not a finished model"
_VERSION = 1


def save_training(
    path: str | Path,
    sparsifier: Sparsifier,
    optimizer: Optimizer,
    scheduler: Any = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Writes model, optimiser, schedule, sparsifier and random states into one file.

    Args:
        path: Of the file; an older one is replaced in one step, after the new one is whole.
        sparsifier: Of the training.
        optimizer: Its optimiser.
        scheduler: Its learning-rate schedule, if it has one.
        extra: Plain values and tensors of the caller, such as the position in the data.

    Returns:
        The path.

    Raises:
        CheckpointError: If it cannot be written; what was there before stays.
    """
    target = Path(path)
    content = {
        "marker": MARKER,
        "version": _VERSION,
        "sparsifier": sparsifier.state_dict(),
        "model": sparsifier.model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": None if scheduler is None else scheduler.state_dict(),
        "random": _random_states(),
        "extra": dict(extra or {}),
    }
    stream = io.BytesIO()
    torch.save(content, stream)
    write_atomic(target, stream.getvalue())
    return target


def load_training(
    path: str | Path,
    sparsifier: Sparsifier,
    optimizer: Optimizer,
    scheduler: Any = None,
) -> dict[str, Any]:
    """Takes up everything that `save_training` wrote, and returns its `extra`.

    The file is read without unpickling code. The sparsifier's part is checked before anything is
    changed.

    Raises:
        CheckpointError: If the file is missing, damaged, of a later version, or of another method,
            length, seed or model.
    """
    content = read_training(path)
    sparsifier.load_state_dict(content["sparsifier"])
    try:
        sparsifier.model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
        if scheduler is not None and content["scheduler"] is not None:
            scheduler.load_state_dict(content["scheduler"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} belongs to another model or optimiser: {error}") from error
    _restore_random(content["random"])
    return dict(content["extra"])


def read_training(path: str | Path) -> dict[str, Any]:
    """Returns the content of a training checkpoint, checked.

    Raises:
        CheckpointError: If it is missing, cut off, or none.
    """
    source = Path(path)
    if not source.is_file():
        raise CheckpointError(f"there is no training checkpoint {source}")
    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise CheckpointError(
            f"{source} is not a training checkpoint, or damaged: {type(error).__name__}"
        ) from error
    if not isinstance(content, dict) or content.get("marker") != MARKER:
        raise CheckpointError(f"{source} is not a training checkpoint of sparsecraft")
    if content["version"] > _VERSION:
        raise CheckpointError(
            f"{source} is of version {content['version']}; this sparsecraft reads up to {_VERSION}"
        )
    return content


def _random_states() -> dict[str, Any]:
    state: dict[str, Any] = {"torch": torch.get_rng_state()}
    legacy: Any = np.random.get_state()  # noqa: NPY002 - the state that users' code may draw from
    name, keys, position, has_gauss, cached = legacy
    words = torch.from_numpy(keys.astype(np.int64))
    state["numpy"] = [str(name), words, int(position), int(has_gauss), float(cached)]
    version, internal, gauss = random.getstate()
    state["python"] = [version, list(internal), gauss]
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _restore_random(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
