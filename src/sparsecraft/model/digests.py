"""Short hashes that tell whether two models, masks or calibration data are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def digest(named: Iterable[tuple[str, Any]]) -> str:
    """Returns a hash of names and values, in their order; of tensors the type, shape and bytes.

    Example:
        >>> digest([("a", torch.ones(2))]) == digest([("a", torch.ones(2))])
        True
        >>> digest([("a", torch.ones(2))]) == digest([("a", torch.ones(2).double())])
        False
    """
    made = hashlib.blake2b(digest_size=16)
    for name, value in named:
        if isinstance(value, Tensor):
            made.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            flat = value.detach().cpu().contiguous().view(-1)
            made.update(flat.view(torch.uint8).numpy().data)
        else:
            made.update(f"{name} {value!r}\n".encode())
    return made.hexdigest()


def digest_of_batches(batches: Sequence[Mapping[str, Any]]) -> str:
    """Returns a hash of calibration batches, whatever the order of their names."""
    return digest((name, batch[name]) for batch in batches for name in sorted(batch))
