"""The Triton kernel of `triton_gather`; imported only where Triton is."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

INPUTS_AT_ONCE = 32
OUTPUTS_AT_ONCE = 128


def gather_rows(x: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """Returns the float32 sums of the kept inputs' weights, each times its input.

    Args:
        x: (rows, inputs).
        weight: (inputs, outputs).
        mask: (rows, inputs) bool.

    Returns:
        (rows, outputs) float32.
    """
    rows, inputs = x.shape
    outputs = weight.shape[1]
    x, weight = x.contiguous(), weight.contiguous()
    counts = mask.sum(1, dtype=torch.int32)
    # A stable sort brings the places of the kept inputs to the front, in order.
    places = torch.argsort(mask.to(torch.uint8), dim=1, descending=True, stable=True)
    product = torch.empty(rows, outputs, dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(outputs, OUTPUTS_AT_ONCE), rows)
    _gather[grid](
        x,
        weight,
        places.to(torch.int32),
        counts,
        product,
        inputs,
        outputs,
        INPUTS=INPUTS_AT_ONCE,
        OUTPUTS=OUTPUTS_AT_ONCE,
    )
    return product


@triton.jit
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
            other=0.0,
        ).to(tl.float32)
        sums += tl.sum(factor[:, None] * block, axis=0)
    tl.store(product + row * outputs + columns, sums, mask=fits)
