"""What sizes, prefixes and inputs an autoencoder accepts."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue, NonFinite


def check_sizes(**sizes: int) -> None:
    """Raises InvalidValue unless each size is a whole number of at least 1."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise InvalidValue(f"{name}={size!r} is not allowed: give a whole number of at least 1")


def check_prefixes(prefixes: tuple[int, ...], d_sae: int) -> tuple[int, ...]:
    """Returns the latents of nested dictionaries, or raises unless they rise to d_sae."""
    if prefixes and (sorted(set(prefixes)) != list(prefixes) or prefixes[0] < 1):
        raise InvalidValue(f"prefixes={prefixes} are not allowed: give ascending numbers from 1")
    if prefixes and prefixes[-1] != d_sae:
        raise InvalidValue(
            f"prefixes={prefixes} must end with all of the dictionary, d_sae={d_sae}"
        )
    return tuple(prefixes)


def check_rows(x: Tensor, d_in: int) -> None:
    """Raises if x (..., d_in) cannot be encoded.

    Raises:
        InvalidValue: For another width, an integer type or no rows.
        NonFinite: For NaN or infinite values.
    """
    if not x.is_floating_point():
        raise InvalidValue(
            f"activations of type {x.dtype} cannot be encoded: convert them to a floating type"
        )
    if x.dim() == 0 or x.shape[-1] != d_in or not x.numel():
        raise InvalidValue(
            f"activations of shape {tuple(x.shape)} were given; this autoencoder reads "
            f"(rows, {d_in}), at least one row"
        )
    if not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x)).reshape(-1, d_in).any(1).sum())
        raise NonFinite(
            f"{bad} of {x.numel() // d_in} rows have NaN or infinite values: leave them "
            "out, or find where the model makes them (half precision often does)"
        )
