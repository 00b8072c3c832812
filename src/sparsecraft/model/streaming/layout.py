"""Which tensors of the files make up which parameter of the model.

Mostly they bear one name and are the same. Where transformers loads a checkpoint under other names
or merges tensors (the experts of a mixture into one parameter), its own rule for saving, applied
to parameters without memory, says which view of a parameter goes into the file under which key:
the same view is then filled when reading, and written from. A rule that computes something cannot
be used this way and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sparsecraft.core.errors import CheckpointError
from sparsecraft.model.streaming.shards import Shards
from sparsecraft.model.targets import ties

IN_MEMORY = "Prune it in memory: --stream never, or sparsecraft.prune(model, ...)."


@dataclass(frozen=True)
class Piece:
    """A tensor of a file as a view of a parameter.

    Args:
        key: Its name in the file.
        shape: Its shape.
        stride: The view's strides in the parameter, in entries.
        offset: Where the view begins, in entries.
    """

    key: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, key: str, view: Tensor) -> Piece:
        """Returns the piece that a view of a parameter is."""
        return cls(key, tuple(view.shape), view.stride(), int(view.storage_offset()))

    def view(self, parameter: Tensor) -> Tensor:
        """Returns the view of a contiguous parameter."""
        return parameter.detach().as_strided(self.shape, self.stride, self.offset)


Layout = dict[str, tuple[Piece, ...]]


class _ViewsOnly(TorchFunctionMode):
    """Keeps views that would only be copied to lie in one piece; real copies stay copies."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is Tensor.contiguous else func(*args, **(kwargs or {}))


def layout_of(model: nn.Module, shards: Shards) -> Layout:
    """Returns parameter name to its pieces; parameters that no file has are left out.

    Args:
        model: The model, with or without memory.
        shards: Its files.

    Raises:
        CheckpointError: If shapes differ, or the files only make up a part of a parameter.
    """
    tied = ties(model)
    parameters = dict(model.named_parameters())
    found: Layout = {}
    for name, parameter in parameters.items():
        key = next((k for k in (name, *tied.get(name, ())) if k in shards.entries), None)
        if key is not None:
            found[name] = (Piece.of(key, parameter),)
    missing = {name: p for name, p in parameters.items() if name not in found}
    if missing:
        found |= _as_saved(model, missing, shards)
    for name, pieces in found.items():
        _check(name, parameters[name], pieces, shards)
    return found


def _as_saved(model: nn.Module, parameters: Mapping[str, Tensor], shards: Shards) -> Layout:
    """Returns the pieces that transformers would save these parameters as."""
    owners = {_storage(parameter): name for name, parameter in parameters.items()}
    found: dict[str, list[Piece]] = {}
    for key, view in _reverted(model, parameters).items():
        owner = owners.get(_storage(view))
        if owner is not None and key in shards.entries:
            found.setdefault(owner, []).append(Piece.of(key, view))
    return {name: tuple(pieces) for name, pieces in found.items()}


def _reverted(model: nn.Module, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:
        return {}  # before transformers 5 every parameter is saved under its own name
    detached = {name: parameter.detach() for name, parameter in parameters.items()}
    converter: Any = revert_weight_conversion
    try:
        with _ViewsOnly():
            return dict(converter(model, detached))
    except (KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return {}  # what is missing then is named by whoever needs it


def _check(name: str, parameter: Tensor, pieces: tuple[Piece, ...], shards: Shards) -> None:
    for piece in pieces:
        entry = shards.entries[piece.key]
        if entry.shape != piece.shape:
            raise CheckpointError(
                f"{entry.file}: {piece.key} has the shape {entry.shape}, where the model that "
                f"config.json describes has {piece.shape}. Are they of one model?"
            )
    covered = sum(_numel(piece.shape) for piece in pieces)
    if covered != parameter.numel():
        raise CheckpointError(
            f"the files hold {covered} of the {parameter.numel()} entries of {name}. {IN_MEMORY}"
        )


def _numel(shape: tuple[int, ...]) -> int:
    entries = 1
    for size in shape:
        entries *= size
    return entries


def _storage(tensor: Tensor) -> int:
    # Also tells tensors without memory apart, whose addresses are all zero.
    return tensor.untyped_storage()._cdata
