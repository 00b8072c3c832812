"""The file formats of sparse autoencoders, one module each; found by what lies in a directory.

Read: ours, SAELens, sparsify, dictionary_learning, Gemma Scope (1 and 2), Llama Scope, OpenAI.
Written: the first four.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from sparsecraft.core.errors import CheckpointError, UnknownName
from sparsecraft.model.sae.autoencoder import SparseAutoencoder

FORMATS = (
    "sparsecraft",
    "saelens",
    "sparsify",
    "dictionary_learning",
    "gemma_scope",
    "llama_scope",
    "openai",
)
WRITTEN = FORMATS[:4]
_MODULES = {"sparsecraft": "ours"}


def reader(name: str) -> Callable[..., SparseAutoencoder]:
    """Returns the function that reads a format: `read(path, dtype)`.

    Raises:
        UnknownName: With the formats there are.
    """
    if name not in FORMATS:
        raise UnknownName("format", name, FORMATS)
    found: Callable[..., SparseAutoencoder] = _module(name).read
    return found


def writer(name: str) -> Callable[[SparseAutoencoder, Path], tuple[str, ...]]:
    """Returns the function that writes a format: `write(sae, folder)`, notes.

    Raises:
        UnknownName: With the formats that can be written.
    """
    if name not in WRITTEN:
        raise UnknownName("format to write", name, WRITTEN)
    found: Callable[[SparseAutoencoder, Path], tuple[str, ...]] = _module(name).write
    return found


def recognised(path: Path) -> str:
    """Returns the format of a directory or file, by the files' names and keys.

    Raises:
        CheckpointError: If it is none, with the folders in it that are one.
    """
    found = _format_of(path)
    if found:
        return found
    inside = _autoencoders_in(path) if path.is_dir() else []
    hint = (
        f" These folders in it hold one: {', '.join(inside[:8])}{', ...' if inside[8:] else ''}."
        if inside
        else " It should hold sparsecraft_sae.json, cfg.json with sae_weights.safetensors (SAELens)"
        " or sae.safetensors (sparsify), config.json with ae.pt (dictionary_learning), params.npz "
        "(Gemma Scope), hyperparams.json (Llama Scope), or be a .pt file (OpenAI)."
    )
    raise CheckpointError(f"{path} is no autoencoder of a format that is known.{hint}")


def _format_of(path: Path) -> str | None:
    return next((name for name in FORMATS if _module(name).recognises(path)), None)


def _autoencoders_in(path: Path) -> list[str]:
    folders = sorted(child for child in path.iterdir() if child.is_dir())
    return [folder.name for folder in folders if _format_of(folder)]


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{_MODULES.get(name, name)}")
