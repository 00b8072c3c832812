"""Rows as users have them, NumPy or torch, in and out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue, NonFinite

Back = Callable[[Tensor], Any]


def as_rows(
    x: Any, width: int | None = None, what: str = "X", reader: str = "the dictionary"
) -> tuple[Tensor, Back]:
    """Returns rows (rows, width) in a floating type, and what turns a result into their kind.

    float32 and float64 stay; NumPy's and Python's whole numbers become float64.

    Args:
        x: A torch tensor, a NumPy array, or what NumPy makes one of.
        width: Entries that a row must have, or None.
        what: Its name in messages.
        reader: Who expects the width, in messages; these are worded as scikit-learn's checks ask.

    Raises:
        InvalidValue: For another shape, type or width, or no rows.
        NonFinite: For NaN or infinite entries.

    Example:
        >>> rows, back = as_rows([[1, 2]])
        >>> rows.dtype, back(rows)
        (torch.float64, array([[1., 2.]]))
    """
    back: Back = _same if isinstance(x, Tensor) else _numpy
    rows = x.detach() if isinstance(x, Tensor) else _from_numpy(x, what)
    if rows.dtype not in (torch.float32, torch.float64):
        raise InvalidValue(f"{what} has the type {rows.dtype}: convert it to float32 or float64")
    if rows.dim() != 2:
        raise InvalidValue(
            f"{what} has the shape {tuple(rows.shape)}; it must be (rows, width). Reshape your "
            "data: one row is x.reshape(1, -1)"
        )
    for size, unit in zip(rows.shape, ("sample", "feature"), strict=True):
        if not size:
            raise InvalidValue(
                f"{what} has 0 {unit}(s) (shape={tuple(rows.shape)}) while a minimum of 1 is "
                "required."
            )
    if width is not None and rows.shape[1] != width:
        raise InvalidValue(
            f"{what} has {rows.shape[1]} features, but {reader} is expecting {width} features as "
            "input"
        )
    bad = int((~torch.isfinite(rows)).any(1).sum())
    if bad:
        raise NonFinite(
            f"{bad} of {len(rows)} rows of {what} have NaN or inf (infinite) entries: leave them "
            "out"
        )
    return rows, back


def _from_numpy(x: Any, what: str) -> Tensor:
    if hasattr(x, "tocsr"):
        raise InvalidValue(f"{what} is a sparse matrix; give a dense one, x.toarray()")
    array = np.asarray(x)
    if array.dtype.kind in "iub":
        array = array.astype(np.float64)
    if array.dtype.kind == "O":
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise InvalidValue(f"{what} cannot be read as numbers: {error}") from error
    if array.dtype.kind == "c":
        raise InvalidValue(f"Complex data not supported: {what} has the type {array.dtype}")
    if array.dtype.kind != "f":
        raise InvalidValue(f"{what} has the type {array.dtype}: give real numbers")
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    return torch.from_numpy(np.array(array))


def _same(found: Tensor) -> Tensor:
    return found


def _numpy(found: Tensor) -> np.ndarray:
    return found.cpu().numpy()
