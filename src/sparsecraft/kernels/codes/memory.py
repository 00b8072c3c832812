"""Memory for large results of the kernels.

A step makes and frees tensors of a dictionary's size. In pages of 4 KiB, giving them zeroed to the
process costs more than the sums written there. NumPy asks the system for huge pages, PyTorch does
not; where there are none, nothing is lost.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns a contiguous tensor that is not initialised."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or not size:
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(size, dtype=np.uint8)).view(dtype).view(shape)


def converted(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns a matrix in a type, itself if it has that, laid out by column if it is."""
    if matrix.dtype == dtype:
        return matrix
    by_column = matrix.T.is_contiguous()
    laid = matrix.T if by_column else matrix
    out = empty(tuple(laid.shape), dtype, matrix.device).copy_(laid)
    return out.T if by_column else out
