"""Checkpoints of the training of autoencoders: one file with everything to go on, written whole.

Weights in it are in the units of the training. Beside it stands each autoencoder as it was at that
moment, folded and saved as any other, so that an unfinished training is of use.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sparsecraft.core.errors import CheckpointError
from sparsecraft.model.files import atomic_file
from sparsecraft.model.sae.scaling import fold
from sparsecraft.model.sae.trainer import Trainer

if TYPE_CHECKING:
    from sparsecraft.model.activation_store.reader import Reader
    from sparsecraft.model.sae.autoencoder import SparseAutoencoder

MARKER = "sparsecraft sae training checkpoint: weights in units of the training"
FILE = "training.pt"
_VERSION = 1


def save(
    directory: Path,
    trainers: Sequence[Trainer],
    reader: Reader,
    identity: Mapping[str, str],
    seconds: float,
) -> None:
    """Writes a checkpoint, then the folded autoencoders; what was there before is replaced whole.

    Raises:
        CheckpointError: If the disk is full or the folder cannot be written.
    """
    content = {
        "marker": MARKER,
        "version": _VERSION,
        "identity": dict(identity),
        "trainers": [trainer.state_dict() for trainer in trainers],
        "reader": reader.state_dict(),
        "random": torch.get_rng_state(),
        "seconds": seconds,
    }
    with atomic_file(directory / FILE) as file:
        torch.save(content, file)
    for number, trainer in enumerate(trainers):
        name = "sae" if len(trainers) == 1 else f"sae-{number}"
        export(trainer).save_pretrained(directory / name, overwrite=True)


def export(trainer: Trainer) -> SparseAutoencoder:
    """Returns a copy of an autoencoder in training that reads raw activations."""
    made = copy.deepcopy(trainer.sae)
    fold(made, trainer.scaling)
    made.trained = True
    return made.requires_grad_(False).eval()


def load(
    directory: Path, trainers: Sequence[Trainer], reader: Reader, identity: Mapping[str, str]
) -> float | None:
    """Takes up a checkpoint if there is one; returns the seconds spent before it, else None.

    Raises:
        CheckpointError: If the file is damaged, or belongs to other settings, which it names.
    """
    path = directory / FILE
    if not path.is_file():
        return None
    content = _read(path)
    theirs = content["identity"]
    differ = [
        f"{name}: {theirs.get(name)} there, {identity.get(name)} here"
        for name in sorted({*theirs, *identity})
        if theirs.get(name) != identity.get(name)
    ]
    if differ:
        raise CheckpointError(
            f"{path} is of a training with other settings ({'; '.join(differ)}). Give the same "
            "ones to go on, or another directory."
        )
    for trainer, state in zip(trainers, content["trainers"], strict=True):
        trainer.load_state_dict(state)
    reader.load_state_dict(content["reader"])
    torch.set_rng_state(content["random"])
    return float(content["seconds"])


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__}): remove it to start anew"
        ) from error
    if not isinstance(content, dict) or content.get("marker") != MARKER:
        raise CheckpointError(f"{path} is no checkpoint of the training of an autoencoder")
    if content["version"] > _VERSION:
        raise CheckpointError(
            f"{path} is of version {content['version']}; this sparsecraft reads up to {_VERSION}"
        )
    return content
