"""A gated product on a GPU: a Triton kernel that reads only the kept inputs' weights.

Not measured: no GPU was at hand. Each program owns a block of outputs and walks over the kept
inputs of one row, whose weights lie side by side. Triton is imported when the kernel first runs.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor

INPUTS_AT_ONCE = 32
OUTPUTS_AT_ONCE = 128

# Triton looks up the names of a kernel in its module: `_compiled` puts triton.language here.
tl: Any = None


@functools.cache
def available() -> bool:
    """Returns whether Triton and a CUDA device are here."""
    return torch.cuda.is_available() and importlib.util.find_spec("triton") is not None


def gathered(
    x: Tensor, bias: Tensor | None, weight: Tensor, scales: Tensor | None, mask: Tensor
) -> Tensor:
    """Returns the product with the masked inputs, plus the bias: (rows, outputs), in x's type.

    Args:
        x: (rows, inputs).
        bias: (outputs,), or None.
        weight: (inputs, outputs).
        scales: (outputs,) with int8 entries, or None.
        mask: (rows, inputs) bool, True where kept.
    """
    product = gather_rows(x, weight, mask)
    if scales is not None:
        product = product * scales
    if bias is not None:
        product = product + bias.float()
    return product.to(x.dtype)


def gather_rows(x: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """Returns the sums of the kept inputs' weights, each times its input: (rows, outputs) float32.

    Args:
        x: (rows, inputs).
        weight: (inputs, outputs).
        mask: (rows, inputs) bool.
    """
    rows, inputs = x.shape
    outputs = weight.shape[1]
    counts = mask.sum(1, dtype=torch.int32)
    # A stable sort brings the places of the kept inputs to the front, in order.
    places = torch.argsort(mask.to(torch.uint8), dim=1, descending=True, stable=True)
    product = torch.empty(rows, outputs, dtype=torch.float32, device=x.device)
    grid = (-(-outputs // OUTPUTS_AT_ONCE), rows)
    _compiled()[grid](
        x.contiguous(),
        weight.contiguous(),
        places.to(torch.int32),
        counts,
        product,
        inputs,
        outputs,
        INPUTS=INPUTS_AT_ONCE,
        OUTPUTS=OUTPUTS_AT_ONCE,
    )
    return product


@functools.cache
def _compiled() -> Any:
    import triton

    globals()["tl"] = importlib.import_module("triton.language")
    return triton.jit(_gather)


def _gather(
    x,
    weight,
    places,
    counts,
    product,
    inputs,
    outputs,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    row = tl.program_id(1)
    columns = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    fits = columns < outputs
    count = tl.load(counts + row)
    sums = tl.zeros([OUTPUTS], dtype=tl.float32)
    for start in range(0, count, INPUTS):
        turn = start + tl.arange(0, INPUTS)
        real = turn < count
        place = tl.load(places + row * inputs + turn, mask=real, other=0)
        factor = tl.load(x + row * inputs + place, mask=real, other=0.0).to(tl.float32)
        block = tl.load(
            weight + place[:, None].to(tl.int64) * outputs + columns[None, :],
            mask=real[:, None] & fits[None, :],
            other=0,
        ).to(tl.float32)
        sums += tl.sum(factor[:, None] * block, axis=0)
    tl.store(product + row * outputs + columns, sums, mask=fits)
