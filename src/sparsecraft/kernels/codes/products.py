"""Products with sparse codes, differentiable: only the selected rows of the weights are touched."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def selected_pre_activations(
    x: Tensor, weight: Tensor, bias: Tensor | None, starts: Tensor, columns: Tensor
) -> Tensor:
    """Returns x W + b at the selected entries (entries,), differentiable in x, W and b.

    Args:
        x: (rows, d_in).
        weight: (d_in, width).
        bias: (width,), or None.
        starts: int64 (rows + 1,).
        columns: int64 (entries,).
    """
    counts = starts.diff()
    rows = torch.arange(len(x), device=x.device).repeat_interleave(counts)
    full = x @ weight if bias is None else torch.addmm(bias, x, weight)
    return full[rows, columns]


def decode(
    starts: Tensor, columns: Tensor, values: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """Returns (rows, d_out): the sum of each row's values times weight rows, plus the bias.

    Args:
        starts: int64 (rows + 1,).
        columns: int64 (entries,).
        values: (entries,).
        weight: (width, d_out).
        bias: (d_out,), or None.
    """
    out = F.embedding_bag(
        columns,
        weight,
        starts,
        mode="sum",
        per_sample_weights=values,
        include_last_offset=True,
    )
    return out if bias is None else out + bias
