"""Exact choice of the largest entries: over many tensors together, or in each row.

Exactly as many entries are kept as asked for, also under ties: of equal entries the earlier one
is kept (earlier tensor, lower flat index). +0 and -0 are equal. The tensors are read where they
lie; they are neither joined nor copied as a whole.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import chain
from types import ModuleType

import torch
from torch import Tensor

from sparsecraft.kernels import backends, selection_torch
from sparsecraft.kernels.order import Order, common_order, segments


def keep_largest(tensors: Sequence[Tensor], keep: int, *, absolute: bool = False) -> list[Tensor]:
    """Returns bool masks of the `keep` largest entries over all the tensors together.

    Args:
        tensors: Scores of float16, bfloat16, float32 or float64, of any shapes; where the types
            differ, they are compared in the wider one.
        keep: How many entries are True over all masks, from 0 to the number of entries.
        absolute: Compare magnitudes, without making them.

    Returns:
        A mask for each tensor, of its shape and on its device.

    Raises:
        ValueError: If the scores hold NaN, are not floats, or `keep` is out of range.

    Example:
        >>> keep_largest([torch.tensor([1., -4.]), torch.tensor([[2.], [3.]])], 2, absolute=True)
        [tensor([False,  True]), tensor([[False],
                [ True]])]
    """
    order = common_order(tensors, absolute)
    total = sum(tensor.numel() for tensor in tensors)
    keep = _checked(keep, 0, total)
    engine = _engine(tensors)
    parts = [segments(tensor) for tensor in tensors]
    pieces = list(chain.from_iterable(parts))
    masks = [torch.empty(t.shape, dtype=torch.bool, device=t.device) for t in tensors]
    if keep in (0, total):
        engine.check_nan(pieces, order)
        for mask in masks:
            mask.fill_(keep > 0)
        return masks
    outs = list(chain.from_iterable(map(_cut, masks, parts)))
    key, left = engine.threshold(pieces, keep, order)
    _mark(engine, pieces, outs, key, left, order)
    return masks


def threshold_largest(tensors: Sequence[Tensor], keep: int, *, absolute: bool = False) -> Tensor:
    """Returns the `keep`-th largest value over all the tensors together, exactly.

    Args:
        tensors: Scores, as for `keep_largest`.
        keep: Rank from the top, from 1 to the number of entries.
        absolute: Compare magnitudes; the value returned is then a magnitude.

    Returns:
        A scalar tensor on the CPU, of the (widest) type of the scores. A zero is +0.

    Raises:
        ValueError: If the scores hold NaN, are not floats, or `keep` is out of range.

    Example:
        >>> threshold_largest([torch.tensor([1., -4.]), torch.tensor([2.])], 2, absolute=True)
        tensor(2.)
    """
    order = common_order(tensors, absolute)
    keep = _checked(keep, 1, sum(tensor.numel() for tensor in tensors))
    pieces = list(chain.from_iterable(map(segments, tensors)))
    key, _ = _engine(tensors).threshold(pieces, keep, order)
    return order.value(key)


def keep_largest_per_row(scores: Tensor, keep: int | Tensor) -> Tensor:
    """Returns a bool mask of the `keep` largest entries of each row.

    Args:
        scores: (rows, cols), of float16, bfloat16, float32 or float64.
        keep: How many are kept in each row, from 0 to cols; one number, or integers (rows,).

    Returns:
        (rows, cols); of equal entries the one in the lower column is kept.

    Raises:
        ValueError: If the scores hold NaN or are no float matrix, or `keep` is out of range.

    Example:
        >>> keep_largest_per_row(torch.tensor([[1., 3., 3.], [0., 0., 5.]]), torch.tensor([1, 2]))
        tensor([[False,  True, False],
                [ True, False,  True]])
    """
    if scores.dim() != 2:
        raise ValueError(f"scores must be (rows, cols), not of shape {tuple(scores.shape)}.")
    order = common_order([scores])
    counts = _row_counts(scores, keep)
    return _engine([scores]).keep_rows(scores.detach(), counts, order)


def _engine(tensors: Sequence[Tensor]) -> ModuleType:
    """Returns the module that runs the passes over the entries."""
    if backends.choose(tensors) == "torch":
        return selection_torch
    from sparsecraft.kernels import selection_numba

    return selection_numba


def _mark(
    engine: ModuleType, pieces: list[Tensor], outs: list[Tensor], key: int, left: int, order: Order
) -> None:
    """Writes the mask of each piece: with all ties at first, then without those beyond `left`."""
    ties = engine.mark(pieces, outs, key, order)
    for piece, out, count in zip(pieces, outs, ties, strict=True):
        if count > left:
            engine.mark_first(piece, out, key, left, order)
        left = max(0, left - count)


def _cut(mask: Tensor, pieces: list[Tensor]) -> Sequence[Tensor]:
    """Returns the mask as flat views, one for each piece of its tensor."""
    return mask.view(-1).split([piece.numel() for piece in pieces])


def _checked(keep: int, lowest: int, highest: int) -> int:
    keep = operator.index(keep)
    if not lowest <= keep <= highest:
        raise ValueError(
            f"keep={keep} entries is not allowed: it must be from {lowest} to {highest}, the "
            "number of entries in all the tensors."
        )
    return keep


def _row_counts(scores: Tensor, keep: int | Tensor) -> Tensor:
    rows, cols = scores.shape
    counts = torch.as_tensor(keep, device=scores.device)
    if counts.is_floating_point() or counts.is_complex() or counts.dtype == torch.bool:
        raise ValueError(f"keep must be an integer or integers (rows,), not {counts.dtype}.")
    if counts.shape not in ((), (rows,)):
        raise ValueError(
            f"keep has shape {tuple(counts.shape)}; it must be one number or one for each of the "
            f"{rows} rows."
        )
    if counts.numel() and not 0 <= int(counts.min()) <= int(counts.max()) <= cols:
        raise ValueError(
            f"keep from {int(counts.min())} to {int(counts.max())} is not allowed: each row has "
            f"{cols} entries to keep."
        )
    return counts.to(torch.int64).expand(rows).contiguous()
