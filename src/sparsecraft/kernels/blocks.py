"""Sums over the blocks of a matrix, and block masks at full size."""

from __future__ import annotations

from torch import Tensor


def block_sums(scores: Tensor, rows_per_block: int, cols_per_block: int) -> Tensor:
    """Returns the sum of the scores in each block of a matrix.

    Args:
        scores: (rows, cols).
        rows_per_block: Height of a block; divides rows.
        cols_per_block: Width of a block; divides cols.

    Returns:
        (rows / rows_per_block, cols / cols_per_block), dtype of the scores.

    Raises:
        ValueError: If the scores are no matrix or the blocks do not tile it.

    Example:
        >>> import torch
        >>> block_sums(torch.tensor([[1., 2., 3., 4.], [5., 6., 7., 8.]]), 2, 2)
        tensor([[14., 22.]])
    """
    rows, cols = _matrix(scores)
    _check_block(rows_per_block, cols_per_block)
    if rows % rows_per_block or cols % cols_per_block:
        raise ValueError(
            f"blocks of {rows_per_block} x {cols_per_block} do not tile a matrix of {rows} x "
            f"{cols}: each side of the block must divide that side of the matrix."
        )
    tiles = scores.reshape(
        rows // rows_per_block, rows_per_block, cols // cols_per_block, cols_per_block
    )
    return tiles.sum(dim=(1, 3))


def expand_blocks(mask: Tensor, rows_per_block: int, cols_per_block: int) -> Tensor:
    """Returns the mask with each entry repeated over a block.

    Args:
        mask: (block rows, block cols), any dtype.
        rows_per_block: Height of a block.
        cols_per_block: Width of a block.

    Returns:
        (block rows * rows_per_block, block cols * cols_per_block), dtype of the mask.

    Raises:
        ValueError: If the mask is no matrix or a block has no entries.

    Example:
        >>> import torch
        >>> expand_blocks(torch.tensor([[True, False]]), 1, 2)
        tensor([[ True,  True, False, False]])
    """
    rows, cols = _matrix(mask)
    _check_block(rows_per_block, cols_per_block)
    tiles = mask[:, None, :, None].expand(rows, rows_per_block, cols, cols_per_block)
    return tiles.reshape(rows * rows_per_block, cols * cols_per_block)


def _matrix(tensor: Tensor) -> tuple[int, int]:
    if tensor.dim() != 2:
        raise ValueError(f"blocks need a matrix (rows, cols), not shape {tuple(tensor.shape)}.")
    return tensor.shape[0], tensor.shape[1]


def _check_block(rows_per_block: int, cols_per_block: int) -> None:
    if rows_per_block < 1 or cols_per_block < 1:
        raise ValueError(
            f"a block of {rows_per_block} x {cols_per_block} has no entries; both sides must be "
            "at least 1."
        )
