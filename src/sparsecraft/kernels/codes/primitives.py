"""The sparse products that decoding, encoding and their gradients are made of.

A code lists the entries of a sparse matrix row by row (`starts`, `columns`); a second listing, by
column, is made where a gradient gathers what falls on one latent, so that each row of a gradient
is written once, by one thread. Sums run in another order in each back end, so that they agree to
rounding; with one back end the number of threads does not change them.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from sparsecraft.kernels import backends
from sparsecraft.kernels.codes import primitives_torch, triton_products

COMPILED = (torch.float32, torch.float64)


class ByColumn(NamedTuple):
    """The entries of a code listed by column, within a column by row.

    Args:
        starts: int64 (width + 1,); places starts[j] to starts[j + 1] belong to column j.
        rows: int64 (entries,), the row at each place.
        entries: int64 (entries,), the entry (in the order by row) at each place.
    """

    starts: Tensor
    rows: Tensor
    entries: Tensor


def weighted_sums(starts: Tensor, columns: Tensor, values: Tensor, weight: Tensor) -> Tensor:
    """Returns (rows, d): for each row the sum of its values times the rows of a weight.

    Args:
        starts: int64 (rows + 1,).
        columns: int64 (entries,), rows of the weight.
        values: (entries,).
        weight: (width, d).
    """
    engine = _engine([values, weight])
    return engine.weighted_sums(starts, columns, values.contiguous(), weight.contiguous())


def sampled_products(starts: Tensor, columns: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Returns (entries,): for each entry the product of its row of x and a row of a weight.

    Args:
        starts: int64 (rows + 1,).
        columns: int64 (entries,), rows of the weight.
        x: (rows, d).
        weight: (width, d).
    """
    engine = _engine([x, weight])
    return engine.sampled_products(starts, columns, x.contiguous(), weight.contiguous())


def by_column(starts: Tensor, columns: Tensor, width: int) -> ByColumn:
    """Returns the entries listed by column.

    Args:
        starts: int64 (rows + 1,).
        columns: int64 (entries,).
        width: Number of columns.
    """
    if columns.device.type == "cpu" and _engine([]) is not primitives_torch:
        from sparsecraft.kernels.codes import primitives_numba

        return ByColumn(*primitives_numba.by_column(starts, columns, width))
    return ByColumn(*primitives_torch.by_column(starts, columns, width))


def _engine(tensors: Sequence[Tensor]) -> ModuleType:
    """Returns the module that runs the loops over entries.

    Raises:
        ValueError: If numba is forced, and a type is not float32 or float64, or types differ.
    """
    if tensors and all(map(_on_gpu, tensors)) and triton_products.available():
        return triton_products
    if backends.choose(tensors) == "torch":
        return primitives_torch
    types = {tensor.dtype for tensor in tensors}
    if types and (len(types) > 1 or not types.issubset(COMPILED)):
        if backends.forced() == "numba":
            names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in types))
            raise ValueError(
                f"the numba back end is forced, but its sparse products take float32 or float64, "
                f"one type for all; {names} were given. Convert them, or use the torch back end."
            )
        return primitives_torch
    from sparsecraft.kernels.codes import primitives_numba

    return primitives_numba


def _on_gpu(tensor: Tensor) -> bool:
    """Returns whether Triton's kernels apply; their sums are float32, too short for float64."""
    return tensor.is_cuda and tensor.dtype != torch.float64
