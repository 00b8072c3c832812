"""Whether a model directory may be pruned: what its small files say before a weight is read."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparsecraft.core.errors import CheckpointError
from sparsecraft.model.checkpoints import MASKS, read_settings, refuse_unfinished

_LOW_BITS = ("F8", "F6", "F4", "U4", "I4")
_INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32")


def check_prunable(source: str | Path, *, again: bool = False) -> tuple[str, ...]:
    """Returns notes on what was found, or raises if the directory cannot be pruned as it is.

    A hub id, which is no directory here, passes.

    Args:
        source: A model directory.
        again: Whether a model that was pruned before may be pruned on top of it.

    Raises:
        CheckpointError: If it was pruned or gated before, is packed, or is quantised.
    """
    path = Path(source)
    if not path.is_dir():
        return ()
    settings = read_settings(path)
    refuse_unfinished(path, settings)
    _refuse_changed(path, settings)
    refuse_quantised(path)
    before = _pruned_before(path, settings)
    if before and not again:
        raise CheckpointError(
            f"{path} was pruned before ({before}). Scores would be taken among what is left, and "
            "masks and sparsity would no longer be those of the report beside it. Prune the dense "
            "model, or say --again (again=True) to prune on top of it."
        )
    return (f"pruned on top of an earlier pruning ({before})",) if before else ()


def _refuse_changed(path: Path, settings: dict[str, Any]) -> None:
    if "gating" in settings or settings.get("gates"):
        raise CheckpointError(
            f"{path} is a gated model: its thresholds were calibrated for its weights as they "
            "are, and its gates would be lost. Prune the model first, then gate the pruned one."
        )
    if settings.get("form") == "augmented":
        raise CheckpointError(
            f"{path} has modules of sparsecraft beside its own (form augmented), which pruning "
            "would lose. Prune the model that it was made from."
        )
    if settings.get("form") == "packed":
        raise CheckpointError(
            f"{path} holds packed weights. Load it with sparsecraft.load, save it as a plain "
            "model, and prune that."
        )


def _pruned_before(path: Path, settings: dict[str, Any]) -> str:
    """Returns by what and how far the model was pruned, or nothing."""
    record = settings.get("pruning")
    if isinstance(record, dict):
        method = record.get("method", {})
        name = method.get("method", "?") if isinstance(method, dict) else method
        sparsity = record.get("sparsity")
        reached = f", sparsity {sparsity:.4f}" if isinstance(sparsity, float) else ""
        return f"by {name}{reached}"
    return f"it has a {MASKS}" if (path / MASKS).is_file() else ""


def refuse_quantised(path: Path, verb: str = "prune") -> None:
    """Raises CheckpointError if a model directory holds codes in place of weights.

    Args:
        path: The directory.
        verb: What was to be done with it, "prune" or "gate".
    """
    config = _json(path / "config.json")
    described = config.get("quantization_config") or config.get("compression_config")
    if described:
        method = described.get("quant_method") if isinstance(described, dict) else None
        raise CheckpointError(
            f"{path} is quantised ({method or 'its config.json has a quantization_config'}): what "
            "it stores are codes, whose zeros are not zeros of the weights. "
            f"{verb.capitalize()} the model that it was quantised from, and quantise the {verb}d "
            "one."
        )
    for name, kind in _types(path):
        last = name.rpartition(".")[2]
        if kind.startswith(_LOW_BITS) or (kind in _INTEGERS and "weight" in last):
            raise CheckpointError(
                f"{path} is quantised: {name} is of the type {kind}. {verb.capitalize()} the model "
                f"in float32, bfloat16 or float16, and quantise the {verb}d one."
            )


def _types(path: Path) -> Iterator[tuple[str, str]]:
    """Yields the name and type of every tensor of two axes or more, from readable headers."""
    for file in sorted(path.glob("*.safetensors")):
        if file.name == MASKS:
            continue
        for name, each in _header(file).items():
            if name != "__metadata__" and len(each["shape"]) >= 2:
                yield name, each["dtype"]


def _header(file: Path) -> dict[str, Any]:
    """Returns the header of a file, or nothing if it is damaged, which loading reports."""
    with file.open("rb") as opened:
        start = opened.read(8)
        if len(start) < 8:
            return {}
        (length,) = struct.unpack("<Q", start)
        if length > file.stat().st_size - 8:
            return {}
        try:
            found = json.loads(opened.read(length))
        except ValueError:
            return {}
    return found if isinstance(found, dict) else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}  # loading says what is wrong with it
    return found if isinstance(found, dict) else {}
