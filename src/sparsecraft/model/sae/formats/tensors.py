"""Reading the files of autoencoders: JSON, safetensors, NumPy archives, pickles without code.

Every failure names the file, and what was missing or too much; nothing is read half.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsecraft.core.errors import CheckpointError, closest


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object of a JSON file.

    Raises:
        CheckpointError: If the file is missing, cut off, or holds no object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}. Copy it again.") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}, not settings by name")
    return found


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file.

    Raises:
        CheckpointError: If the file is missing or damaged.
    """
    from safetensors.torch import load_file

    _present(path)
    try:
        return load_file(str(path))
    except Exception as error:
        raise CheckpointError(f"{path} is damaged: {error}. Copy it again.") from error


def write_safetensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes tensors row-major, from whatever device and layout they have."""
    from safetensors.torch import save_file

    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(ready, str(path), {"format": "pt", **(metadata or {})})


def widened(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns tensors in which a fold loses nothing: half precision becomes float32."""
    wide = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
    return {
        name: tensor.detach().to(wide.get(tensor.dtype, tensor.dtype))
        for name, tensor in tensors.items()
    }


def read_arrays(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a NumPy archive (.npz).

    Raises:
        CheckpointError: If the file is missing, damaged, or holds objects instead of numbers.
    """
    _present(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name].copy()) for name in arrays.files}
    except (OSError, ValueError, TypeError, zipfile.BadZipFile, EOFError) as error:
        raise CheckpointError(f"{path} is no NumPy archive of numbers: {error}") from error


def read_pickled(path: Path) -> dict[str, Any]:
    """Returns the dictionary of a torch file that holds tensors, numbers and texts only.

    Raises:
        CheckpointError: If the file is missing or damaged, or would run code when it is opened.
    """
    _present(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors, numbers and texts, so opening it could run any code, "
            "or it is damaged. Save the state_dict alone, or convert it with the library that "
            "wrote it."
        ) from error
    except (OSError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{path} is damaged: {error}. Copy it again.") from error
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{path} holds a {type(found).__name__}, not tensors by name")
    return dict(found)


def check_tensors(
    tensors: Collection[str], needed: Iterable[str], path: Path, *, optional: Iterable[str] = ()
) -> None:
    """Raises CheckpointError, with names, unless a file has the tensors that it should have."""
    wanted, allowed = set(needed), {*needed, *optional}
    missing, surplus = sorted(wanted - set(tensors)), sorted(set(tensors) - allowed)
    if not missing and not surplus:
        return
    parts = []
    if missing:
        parts.append(f"lacks {', '.join(missing)}")
    if surplus:
        parts.append(f"has {', '.join(surplus)} too much")
    raise CheckpointError(
        f"{path} {' and '.join(parts)}; it should hold {', '.join(sorted(wanted))}. Were files of "
        "two autoencoders mixed, or was it written by another version?"
    )


def check_settings(settings: Mapping[str, Any], known: Collection[str], path: Path) -> None:
    """Raises CheckpointError for a setting that is not known, with the closest known one."""
    for name in settings:
        if name not in known:
            near = closest(name, known, limit=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise CheckpointError(
                f"{path} has the setting {name!r}, which is not known here, so what the file means "
                f"is not known either.{hint} Was it written by a later sparsecraft?"
            )


def needed(settings: Mapping[str, Any], name: str, path: Path) -> Any:
    """Returns a setting, or raises CheckpointError if it is not there."""
    if settings.get(name) is None:
        raise CheckpointError(f"{path} does not say {name!r}; without it the file has no meaning")
    return settings[name]


def _present(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; copy the autoencoder again, with all its files")
