"""The sparse products on a GPU, as Triton kernels.

Not measured: no GPU was at hand. A program of `weighted_sums` owns a block of one row's outputs and
walks over the row's entries; one of `sampled_products` owns a few entries of one row and walks over
the width. Sums are float32. Gradients of weights come from the listing by column, so nothing is
added atomically, and the same input gives the same bits. Triton is imported when a kernel runs.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

ENTRIES_AT_ONCE = 8
OUTPUTS_AT_ONCE = 256
PRODUCTS_AT_ONCE = 16
INPUTS_AT_ONCE = 128

# Triton looks up the names of a kernel in its module: `_compiled` puts triton.language here.
tl: Any = None


@functools.cache
def available() -> bool:
    """Returns whether Triton and a CUDA device are here."""
    return torch.cuda.is_available() and importlib.util.find_spec("triton") is not None


def weighted_sums(starts: Tensor, columns: Tensor, values: Tensor, weight: Tensor) -> Tensor:
    """Returns (rows, d); see `primitives.weighted_sums`."""
    rows, width = len(starts) - 1, weight.shape[1]
    dtype = torch.promote_types(values.dtype, weight.dtype)
    out = torch.empty(rows, width, dtype=dtype, device=weight.device)
    if out.numel():
        # Rows first: a grid's first axis alone may be longer than 65535.
        grid = (rows, -(-width // OUTPUTS_AT_ONCE))
        _compiled(_weighted_sums)[grid](
            starts,
            columns,
            values,
            weight,
            out,
            width,
            ENTRIES=ENTRIES_AT_ONCE,
            OUTPUTS=OUTPUTS_AT_ONCE,
        )
    return out


def sampled_products(starts: Tensor, columns: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Returns (entries,); see `primitives.sampled_products`."""
    dtype = torch.promote_types(x.dtype, weight.dtype)
    out = torch.empty(len(columns), dtype=dtype, device=weight.device)
    if out.numel():
        longest = int(starts.diff().max())
        grid = (len(x), -(-longest // PRODUCTS_AT_ONCE))
        _compiled(_sampled)[grid](
            starts,
            columns,
            x,
            weight,
            out,
            weight.shape[1],
            ENTRIES=PRODUCTS_AT_ONCE,
            INPUTS=INPUTS_AT_ONCE,
        )
    return out


@functools.cache
def _compiled(kernel: Callable[..., None]) -> Any:
    import triton

    globals()["tl"] = importlib.import_module("triton.language")
    return triton.jit(kernel)


def _weighted_sums(
    starts,
    columns,
    values,
    weight,
    out,
    width,
    ENTRIES: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    outputs = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    fits = outputs < width
    first = tl.load(starts + row)
    last = tl.load(starts + row + 1)
    sums = tl.zeros([OUTPUTS], dtype=tl.float32)
    for entry in range(first, last, ENTRIES):
        turn = entry + tl.arange(0, ENTRIES)
        real = turn < last
        column = tl.load(columns + turn, mask=real, other=0)
        value = tl.load(values + turn, mask=real, other=0.0).to(tl.float32)
        block = tl.load(
            weight + column[:, None] * width + outputs[None, :],
            mask=real[:, None] & fits[None, :],
            other=0.0,
        ).to(tl.float32)
        sums += tl.sum(value[:, None] * block, axis=0)
    tl.store(out + row * width + outputs, sums.to(out.dtype.element_ty), mask=fits)


def _sampled(
    starts,
    columns,
    x,
    weight,
    out,
    width,
    ENTRIES: tl.constexpr,
    INPUTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    last = tl.load(starts + row + 1)
    turn = tl.load(starts + row) + tl.program_id(1) * ENTRIES + tl.arange(0, ENTRIES)
    real = turn < last
    column = tl.load(columns + turn, mask=real, other=0)
    sums = tl.zeros([ENTRIES], dtype=tl.float32)
    for start in range(0, width, INPUTS):
        place = start + tl.arange(0, INPUTS)
        fits = place < width
        part = tl.load(x + row * width + place, mask=fits, other=0.0).to(tl.float32)
        block = tl.load(
            weight + column[:, None] * width + place[None, :],
            mask=real[:, None] & fits[None, :],
            other=0.0,
        ).to(tl.float32)
        sums += tl.sum(block * part[None, :], axis=1)
    tl.store(out + turn, sums.to(out.dtype.element_ty), mask=real)
