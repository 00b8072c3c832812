"""Calls of the native library: tensors in, tensors out.

The library computes with float32 inputs and outputs; other types are converted on the way.
Callers have checked shapes and types (`WeightFormat`) and that the library is there (`choose`).
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from sparsecraft.kernels.linear import library

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
# As a threshold: every score exceeds it.
ALL = -1.0


def dense(x: Tensor, bias: Tensor | None, weight: Tensor, scales: Tensor | None) -> Tensor:
    """Returns x times the transposed dense weight (outputs, inputs), plus the bias."""
    rows = _wide(x)
    outputs, inputs = weight.shape
    product = rows.new_empty(rows.shape[0], outputs)
    bias = _wide_or_none(bias)
    _library().sparsecraft_dense(
        rows.data_ptr(),
        weight.data_ptr(),
        _pointer(scales),
        _pointer(bias),
        product.data_ptr(),
        rows.shape[0],
        inputs,
        outputs,
        KINDS[weight.dtype],
        torch.get_num_threads(),
    )
    return product if x.dtype == torch.float32 else product.to(x.dtype)


def gated(
    x: Tensor,
    bias: Tensor | None,
    weight: Tensor,
    scales: Tensor | None,
    threshold: float | None,
    keep: int | None,
    norms: Tensor | None,
) -> Tensor:
    """Returns the product with the kept inputs; the weight is (inputs, outputs)."""
    rows = _wide(x)
    inputs, outputs = weight.shape
    product = rows.new_empty(rows.shape[0], outputs)
    bias, norms = _wide_or_none(bias), _wide_or_none(norms)
    _library().sparsecraft_gated(
        rows.data_ptr(),
        weight.data_ptr(),
        _pointer(scales),
        _pointer(bias),
        _pointer(norms),
        product.data_ptr(),
        rows.shape[0],
        inputs,
        outputs,
        KINDS[weight.dtype],
        ALL if threshold is None else threshold,
        inputs if keep is None else keep,
        torch.get_num_threads(),
    )
    return product if x.dtype == torch.float32 else product.to(x.dtype)


def bitmask(
    x: Tensor,
    bias: Tensor | None,
    bits: Tensor,
    values: Tensor,
    starts: Tensor,
    scales: Tensor | None,
) -> Tensor:
    """Returns x times the transposed weight of bits and values, plus the bias."""
    rows = _wide(x)
    outputs = bits.shape[0]
    product = rows.new_empty(rows.shape[0], outputs)
    bias = _wide_or_none(bias)
    _library().sparsecraft_bitmask(
        rows.data_ptr(),
        bits.data_ptr(),
        values.data_ptr(),
        starts.data_ptr(),
        _pointer(scales),
        _pointer(bias),
        product.data_ptr(),
        rows.shape[0],
        rows.shape[1],
        outputs,
        KINDS[values.dtype],
        torch.get_num_threads(),
    )
    return product if x.dtype == torch.float32 else product.to(x.dtype)


def unpack_bitmask(
    bits: Tensor,
    values: Tensor,
    starts: Tensor,
    scales: Tensor | None,
    tile: Tensor,
    first: int,
) -> None:
    """Writes the weight's outputs from the first on, dense, until the tile is full.

    Args:
        bits: As `Bitmask` has them, like the next three.
        values: Packed.
        starts: Of rows.
        scales: With int8.
        tile: (outputs, inputs), float32; or bfloat16 if the values are.
        first: The output that comes first.
    """
    _library().sparsecraft_unpack_bitmask(
        bits.data_ptr(),
        values.data_ptr(),
        starts.data_ptr(),
        _pointer(scales),
        tile.data_ptr(),
        bits.shape[0],
        first,
        first + tile.shape[0],
        tile.shape[1],
        KINDS[values.dtype],
        KINDS[tile.dtype],
        torch.get_num_threads(),
    )


def csr(x: Tensor, bias: Tensor | None, columns: Tensor, values: Tensor, starts: Tensor) -> Tensor:
    """Returns x times the transposed weight of columns and values, plus the bias."""
    rows = _wide(x)
    outputs = starts.shape[0] - 1
    product = rows.new_empty(rows.shape[0], outputs)
    bias = _wide_or_none(bias)
    _library().sparsecraft_csr(
        rows.data_ptr(),
        columns.data_ptr(),
        values.data_ptr(),
        starts.data_ptr(),
        _pointer(bias),
        product.data_ptr(),
        rows.shape[0],
        rows.shape[1],
        outputs,
        KINDS[values.dtype],
        torch.get_num_threads(),
    )
    return product if x.dtype == torch.float32 else product.to(x.dtype)


def _library() -> ctypes.CDLL:
    found = library.load()
    if found is None:
        raise RuntimeError(f"no native library: {library.native_status()['reason']}")
    return found


def _wide(tensor: Tensor) -> Tensor:
    if tensor.dtype == torch.float32 and tensor.is_contiguous():
        return tensor
    return tensor.detach().to(torch.float32).contiguous()


def _wide_or_none(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else _wide(tensor)


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
