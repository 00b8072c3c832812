"""Gated and compressed-row products in compiled loops, where there is no native library."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sparsecraft.kernels.compiled import compiled
from sparsecraft.kernels.threads import in_threads, shares

# Outputs whose sums stay in the nearest cache.
BLOCK = 2048
# Entries that pay for a thread.
PER_THREAD = 1 << 18


def gathered(x: Tensor, bias: Tensor | None, weight: Tensor, mask: Tensor) -> Tensor:
    """Returns the product with the masked inputs, plus the bias.

    Args:
        x: (rows, inputs).
        bias: (outputs,), or None.
        weight: (inputs, outputs), float32 or bfloat16.
        mask: (rows, inputs) bool.
    """
    rows, outputs = x.shape[0], weight.shape[1]
    product = _started(rows, outputs, bias)
    narrow = weight.dtype == torch.bfloat16
    stored = weight.view(torch.int16).numpy() if narrow else weight.numpy()
    add = _add_bfloat16 if narrow else _add_float32
    inputs = x.detach().float().numpy()
    kept = [row.nonzero().flatten().numpy() for row in mask]
    blocks = [slice(start, start + BLOCK) for start in range(0, outputs, BLOCK)]

    def work(share: Sequence[slice]) -> None:
        for block in share:
            for row in range(rows):
                add(inputs[row], kept[row], stored[:, block], product[row, block])

    sizes = [sum(len(found) for found in kept) * BLOCK] * len(blocks)
    in_threads(work, shares(blocks, sizes, PER_THREAD))
    return torch.from_numpy(product).to(x.dtype)


def csr_rows(
    x: Tensor, bias: Tensor | None, columns: Tensor, values: Tensor, starts: Tensor
) -> Tensor:
    """Returns the product with a float32 weight in compressed rows, plus the bias."""
    outputs = starts.shape[0] - 1
    product = _started(x.shape[0], outputs, bias)
    turned = np.ascontiguousarray(x.detach().float().t().numpy())
    places, entries, firsts = columns.numpy(), values.numpy(), starts.numpy()
    step = max(1, outputs // (8 * torch.get_num_threads()))
    bands = [(first, min(outputs, first + step)) for first in range(0, outputs, step)]

    def work(share: Sequence[tuple[int, int]]) -> None:
        for first, last in share:
            _add_rows(turned, places, entries, firsts, first, last, product)

    sizes = [int(firsts[last] - firsts[first]) * x.shape[0] for first, last in bands]
    in_threads(work, shares(bands, sizes, PER_THREAD))
    return torch.from_numpy(product).to(x.dtype)


def _started(rows: int, outputs: int, bias: Tensor | None) -> np.ndarray:
    product = np.zeros((rows, outputs), dtype=np.float32)
    if bias is not None:
        product += bias.detach().float().numpy()
    return product


@compiled
def _add_float32(x, kept, weight, sums):
    """Adds the rows of the kept inputs, each times its input."""
    for i in range(kept.size):
        j = kept[i]
        factor = x[j]
        row = weight[j]
        for o in range(sums.size):
            sums[o] += factor * row[o]


@compiled
def _add_bfloat16(x, kept, weight, sums):
    """Adds the rows of the kept inputs; a bfloat16 is the upper half of a float32."""
    wide = np.empty(sums.size, dtype=np.int32)
    floats = wide.view(np.float32)
    for i in range(kept.size):
        j = kept[i]
        factor = x[j]
        row = weight[j]
        for o in range(sums.size):
            wide[o] = np.int32(row[o]) << 16
        for o in range(sums.size):
            sums[o] += factor * floats[o]


@compiled
def _add_rows(x, columns, values, starts, first, last, product):
    """Adds outputs first to last of every row of x, which is (inputs, rows)."""
    rows = x.shape[1]
    for output in range(first, last):
        for row in range(rows):
            total = np.float32(0)
            for place in range(starts[output], starts[output + 1]):
                total += values[place] * x[columns[place], row]
            product[row, output] += total
