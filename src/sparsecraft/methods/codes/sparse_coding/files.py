"""A learner in one safetensors file: atoms, counts, settings, and how the rows were prepared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sparsecraft.core.errors import CheckpointError, SparsityError
from sparsecraft.core.penalties import Penalty, by_name, describe_penalty
from sparsecraft.methods.codes.sparse_coding.preprocessing import Whitening
from sparsecraft.methods.codes.sparse_coding.progress import Progress
from sparsecraft.model.files import write_atomic

KIND, FORMAT = "sparsecraft dictionary learning", 1
CONVENTION = "argmin 1/2 (z - x)^2 + step R(z)"

Learner = tuple[dict[str, Any], Tensor, Progress, Whitening | None]


def write_learner(
    path: Path,
    settings: Mapping[str, Any],
    dictionary: Tensor,
    progress: Progress,
    whitening: Whitening | None,
) -> None:
    """Writes a learner whole, or leaves what was there.

    Raises:
        CheckpointError: If it cannot be written.
        InvalidValue: If its penalty has no name to be written by.
    """
    from safetensors.torch import save

    penalty = settings["penalty"]
    plain = describe_penalty(penalty) if isinstance(penalty, Penalty) else penalty
    about = {
        "kind": KIND,
        "format": FORMAT,
        "settings": {**settings, "penalty": plain},
        "convention": CONVENTION,
        "progress": progress.numbers(),
        "whitening": None if whitening is None else whitening.to_json(),
    }
    tensors = {
        "dictionary": dictionary.contiguous(),
        "active": progress.active,
        "quiet": progress.quiet,
    }
    write_atomic(path, save(tensors, {"sparsecraft": json.dumps(about)}))


def read_learner(path: Path) -> Learner:
    """Returns (settings, dictionary, progress, whitening) of a file.

    Raises:
        CheckpointError: If it is missing, damaged, or of another kind or a later format.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("sparsecraft", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"could not read the dictionary in {path}: {error}") from error
    if about.get("kind") != KIND:
        raise CheckpointError(f"{path} holds no dictionary that DictionaryLearning.save wrote")
    if about["format"] > FORMAT:
        raise CheckpointError(
            f"{path} has the format {about['format']}, this version reads up to {FORMAT}: update "
            "sparsecraft"
        )
    try:
        settings = about["settings"]
        if isinstance(settings["penalty"], dict):
            settings["penalty"] = by_name(**settings["penalty"])
        whitening = None if about["whitening"] is None else Whitening(**about["whitening"])
        progress = Progress.restored(tensors, about["progress"])
        return settings, tensors["dictionary"], progress, whitening
    except (KeyError, TypeError, SparsityError) as error:
        raise CheckpointError(f"the dictionary in {path} is incomplete: {error}") from error
