"""TEAL's greedy allocation: which matrices of a block bear how much activation sparsity.

All start dense. In every step the matrix whose further sparsity hurts the block's output least gets
a little more, less where the matrix is larger, until the mean weighted by size reaches the target.
The whole way is kept, so that any smaller sparsity can be looked up later. Sizes are computed from
shapes; no share passes what still keeps one entry.

Reference:
    Liu et al., 2024, arXiv 2408.14690, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue

Shares = Mapping[str, float]
_SLACK = 1e-9
_MEASURED = 0.25  # of the tokens of a sequence, from its end


@dataclass(frozen=True)
class AllocationRow:
    """One step of the way.

    Args:
        effective: Mean sparsity weighted by size.
        error: Of the block's output with these shares.
        uniform_error: Of the block's output with this sparsity everywhere.
        shares: Sparsity of each matrix.
    """

    effective: float
    error: float
    uniform_error: float
    shares: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return {
            "effective": self.effective,
            "error": self.error,
            "uniform_error": self.uniform_error,
            "shares": dict(self.shares),
        }


def relative_sizes(shapes: Mapping[str, tuple[int, int]]) -> dict[str, float]:
    """Returns each matrix's number of weights relative to the query's.

    The query's is that of the first square matrix, or of the first matrix where none is square.

    Args:
        shapes: Name to (outputs, inputs), in model order.

    Example:
        >>> relative_sizes({"q": (4, 4), "k": (1, 4), "up": (14, 4)})
        {'q': 1.0, 'k': 0.25, 'up': 3.5}
    """
    counts = {name: rows * columns for name, (rows, columns) in shapes.items()}
    square = (counts[name] for name, (rows, columns) in shapes.items() if rows == columns)
    one = next(square, next(iter(counts.values())))
    return {name: each / one for name, each in counts.items()}


def effective_sparsity(shares: Shares, sizes: Mapping[str, float]) -> float:
    """Returns the mean of the shares weighted by size.

    Example:
        >>> effective_sparsity({"q": 0.5, "up": 0.25}, {"q": 1.0, "up": 3.0})
        0.3125
    """
    return sum(shares[name] * size for name, size in sizes.items()) / sum(sizes.values())


def block_error(dense: Tensor, sparse: Tensor) -> float:
    """Returns how far the output of a block is from the dense one, on the last 25 % of tokens.

    Args:
        dense: (batch, tokens, features).
        sparse: The same shape.

    Returns:
        The norm of the difference over the tokens, averaged over batch and features.

    Example:
        >>> dense = torch.zeros(1, 4, 1)
        >>> block_error(dense, dense + torch.tensor([9.0, 9.0, 9.0, 2.0]).view(1, 4, 1))
        2.0
    """
    tokens = max(1, int(_MEASURED * dense.shape[1]))
    difference = dense[:, -tokens:].float() - sparse[:, -tokens:].float()
    return float(torch.linalg.vector_norm(difference, dim=1).mean())


def greedy_shares(
    sizes: Mapping[str, float],
    error: Callable[[Shares], float],
    *,
    target: float,
    step: float,
    most: Shares | None = None,
) -> list[AllocationRow]:
    """Returns the way from dense to the target, one row a step.

    Args:
        sizes: Relative size of each matrix.
        error: Shares to the error of the block's output.
        target: Weighted mean sparsity to reach, in [0, 1).
        step: What a matrix of size 1 gets at a time, in (0, 1].
        most: The largest share of each matrix; 1 unless given.

    Raises:
        InvalidValue: If the largest shares do not reach the target.

    Example:
        >>> rows = greedy_shares({"a": 1.0, "b": 1.0}, lambda s: 2 * s["a"] + s["b"],
        ...                      target=0.5, step=0.5)
        >>> rows[-1].shares
        {'a': 0.0, 'b': 1.0}
    """
    limits = dict.fromkeys(sizes, 1.0) if most is None else dict(most)
    if effective_sparsity(limits, sizes) < target - _SLACK:
        raise InvalidValue(
            f"sparsity {target:g} cannot be reached: one entry of every token must stay, which "
            f"allows {effective_sparsity(limits, sizes):g} at most in a block this small"
        )
    shares = dict.fromkeys(sizes, 0.0)
    rows = [AllocationRow(0.0, 0.0, 0.0, dict(shares))]
    while rows[-1].effective < target - _SLACK:
        shares, lowest = _best_step(shares, sizes, error, step, limits)
        effective = effective_sparsity(shares, sizes)
        even = {name: min(effective, limits[name]) for name in sizes}
        rows.append(AllocationRow(effective, lowest, error(even), shares))
    return rows


def nearest_row(rows: Sequence[AllocationRow], sparsity: float) -> AllocationRow:
    """Returns the row whose effective sparsity is nearest to the asked one."""
    return min(rows, key=lambda row: abs(row.effective - sparsity))


def _best_step(
    shares: Mapping[str, float],
    sizes: Mapping[str, float],
    error: Callable[[Shares], float],
    step: float,
    limits: Shares,
) -> tuple[dict[str, float], float]:
    """Returns the shares after the step of lowest error, and that error."""
    tried = [
        {**shares, name: min(limits[name], shares[name] + step / size)}
        for name, size in sizes.items()
        if shares[name] < limits[name] - _SLACK
    ]
    errors = [error(each) for each in tried]
    lowest = min(range(len(tried)), key=errors.__getitem__)
    return tried[lowest], errors[lowest]
