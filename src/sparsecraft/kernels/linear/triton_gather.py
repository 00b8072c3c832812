"""A gated product on a GPU: a Triton kernel that reads only the kept inputs' weights.

Not measured: no GPU was at hand. Each program owns a block of outputs and walks over the kept
inputs of one row, whose weights lie side by side.
"""

from __future__ import annotations

import functools
import importlib.util

import torch
from torch import Tensor


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
    from sparsecraft.kernels.linear.triton_kernel import gather_rows

    product = gather_rows(x, weight, mask)
    if scales is not None:
        product = product * scales
    if bias is not None:
        product = product + bias.float()
    return product.to(x.dtype)
