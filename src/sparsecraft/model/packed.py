"""Weights on disk without their zeros: one bit for each entry, and the values that are not zero.

For a tensor `name` the file holds `name.bits` (uint8, the first entry in the highest bit) and
`name.values` (the kept entries in row-major order, in the tensor's own dtype); a tensor that would
not shrink stands there as it is. The shapes are in the metadata, as JSON.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import CheckpointError
from sparsecraft.core.mask import Mask, pack_bits, unpack_bits
from sparsecraft.model.files import write_atomic

PACKED = "packed.safetensors"
_VERSION = "1"


def pack_state(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns (tensors, metadata) of the packed form of a state dict.

    Tensors that share memory are stored once.

    Args:
        state: Name to tensor, as `model.state_dict()` gives it.
    """
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    for name, tensor in state.items():
        where = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))
        if tensor.numel() and where in first:
            aliases[name] = first[where]
            continue
        first[where] = name
        dense = tensor.detach().cpu().contiguous()
        keep = _kept(dense)
        if _shrinks(keep, dense.element_size()):
            tensors[f"{name}.bits"] = pack_bits(keep)
            tensors[f"{name}.values"] = dense[keep]
            shapes[name] = list(dense.shape)
        else:
            tensors[name] = dense
    metadata = {
        "format": "pt",
        "sparsecraft_packed": _VERSION,
        "shapes": json.dumps(shapes),
        "aliases": json.dumps(aliases),
    }
    return tensors, metadata


def unpack_state(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """Returns the state dict that `pack_state` packed, bit for bit.

    Raises:
        CheckpointError: If the metadata are not those of a packed file of this version.
    """
    _check_version(metadata)
    shapes = {name: tuple(shape) for name, shape in json.loads(metadata["shapes"]).items()}
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        base, _, part = name.rpartition(".")
        if part == "values" and base in shapes:
            keep = unpack_bits(tensors[f"{base}.bits"], shapes[base])
            whole = torch.zeros(shapes[base], dtype=tensor.dtype)
            whole[keep] = tensor
            state[base] = whole
        elif not (part == "bits" and base in shapes):
            state[name] = tensor
    for name, source in json.loads(metadata["aliases"]).items():
        state[name] = state[source]
    return state


def save_packed(model: nn.Module, path: Path) -> int:
    """Writes the packed weights of a model and returns the size of the file in bytes."""
    data = _serialised(model)
    write_atomic(path, data)
    return len(data)


def packed_bytes(model: nn.Module) -> int:
    """Returns how many bytes the packed file of a model has."""
    return len(_serialised(model))


def load_packed(path: Path) -> dict[str, Tensor]:
    """Returns the state dict of a packed file, bit for bit what was saved."""
    from safetensors import safe_open

    with safe_open(str(path), "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return unpack_state(tensors, file.metadata() or {})


def masks_in_weights(model: nn.Module, mask: Mask) -> tuple[list[str], Mask]:
    """Returns the names of the masks that the packed weights tell, and the masks that they do not.

    A mask is told where exactly its kept entries are stored: one that keeps a weight which happens
    to be zero is not, nor one of a tensor that would not shrink.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    told: list[str] = []
    for name, keep in mask.items():
        kept = _kept(parameters[name].detach().cpu())
        if torch.equal(kept, keep.cpu()) and _shrinks(kept, parameters[name].element_size()):
            told.append(name)
    return told, Mask({name: keep for name, keep in mask.items() if name not in told})


def packed_masks(path: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Returns the masks of these tensors from the bits of a packed file."""
    from safetensors import safe_open

    with safe_open(str(path), "pt") as file:
        metadata = file.metadata() or {}
        _check_version(metadata)
        shapes, aliases = json.loads(metadata["shapes"]), json.loads(metadata["aliases"])
        sources = {name: aliases.get(name, name) for name in names}
        return {
            name: unpack_bits(file.get_tensor(f"{source}.bits"), tuple(shapes[source]))
            for name, source in sources.items()
        }


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Returns the content of a safetensors file, the same bytes for the same tensors.

    The format leaves the order of the metadata open, and its library writes them in any.
    """
    from safetensors.torch import save

    data = save(dict(tensors), dict(metadata))
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def _serialised(model: nn.Module) -> bytes:
    return safetensors_bytes(*pack_state(model.state_dict()))


def _check_version(metadata: Mapping[str, str]) -> None:
    if metadata.get("sparsecraft_packed") != _VERSION:
        raise CheckpointError("not a packed sparsecraft file of version 1; load it as it is")


def _kept(dense: Tensor) -> Tensor:
    """Returns which entries are stored: a negative zero too, whose sign bit would be lost."""
    return (dense != 0) | torch.signbit(dense) if dense.is_floating_point() else dense != 0


def _shrinks(keep: Tensor, item: int) -> bool:
    packed = (keep.numel() + 7) // 8 + int(keep.sum()) * item
    return keep.dim() >= 2 and packed < keep.numel() * item
