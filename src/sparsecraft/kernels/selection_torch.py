"""Exact selection in plain PyTorch, on any device: the reference for the compiled back end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sparsecraft.kernels.order import NAN, Order
from sparsecraft.kernels.radix import BINS, DIGIT, radix_threshold


def check_nan(pieces: Sequence[Tensor], order: Order) -> None:
    """Raises ValueError if a piece holds a NaN."""
    if any(bool(torch.isnan(piece).any()) for piece in pieces):
        raise ValueError(NAN)


def threshold(pieces: Sequence[Tensor], keep: int, order: Order) -> tuple[int, int]:
    """Returns the `keep`-th largest key and how many of the entries equal to it are kept.

    Args:
        pieces: The scores.
        keep: Rank from the top, from 1 to the number of entries.
        order: How the entries are compared.

    Raises:
        ValueError: If there is a NaN.
    """
    check_nan(pieces, order)

    def histogram(shift: int, prefix: int | None) -> np.ndarray:
        counts = np.zeros(BINS, dtype=np.int64)
        for piece in pieces:
            keys = order.keys(piece)
            if prefix is None:
                digits = (keys >> shift).to(torch.int32) + BINS // 2
            else:
                digits = (keys[(keys >> (shift + DIGIT)) == prefix] >> shift) & (BINS - 1)
            counts += torch.bincount(digits, minlength=BINS).cpu().numpy()
        return counts

    return radix_threshold(histogram, order.bits, keep)


def mark(pieces: Sequence[Tensor], outs: Sequence[Tensor], key: int, order: Order) -> list[int]:
    """Writes where the entries reach the key; returns how many equal it in each piece.

    Args:
        pieces: Scores.
        outs: A flat bool tensor for each piece, overwritten.
        key: The threshold.
        order: How the entries are compared.
    """
    ties = []
    for piece, out in zip(pieces, outs, strict=True):
        keys = order.keys(piece)
        torch.ge(keys, key, out=out)
        ties.append(int((keys == key).sum()))
    return ties


def mark_first(piece: Tensor, out: Tensor, key: int, kept: int, order: Order) -> None:
    """Writes where the entries exceed the key, or are among the first `kept` that equal it."""
    keys = order.keys(piece)
    equal = keys == key
    out.copy_((keys > key) | (equal & (equal.cumsum(0) <= kept)))


def keep_rows(scores: Tensor, keep: Tensor, order: Order) -> Tensor:
    """Returns the mask of the `keep[row]` largest entries of each row.

    Args:
        scores: (rows, cols).
        keep: (rows,), int64, each from 0 to cols.
        order: How the entries are compared.

    Raises:
        ValueError: If there is a NaN.
    """
    check_nan([scores], order)
    keys = order.keys(scores).view(scores.shape)
    ranked = torch.sort(keys, dim=1, descending=True, stable=True).indices
    first = torch.arange(scores.shape[1], device=scores.device) < keep[:, None]
    return torch.empty_like(first).scatter_(1, ranked, first)
