"""Wanda, SparseGPT and DSnoT the straightforward way: vectorised, with whole sorts.

What `bench_pruning.py` measures the library against; it checks that the results agree.
"""

from __future__ import annotations

import torch
from torch import Tensor


def wanda(weight: Tensor, norm: Tensor, pruned: int) -> Tensor:
    """Returns the mask without the `pruned` entries of lowest score in each row."""
    scores = weight.abs() * norm
    order = scores.sort(dim=1, stable=True).indices
    return torch.ones_like(weight, dtype=torch.bool).scatter_(1, order[:, :pruned], False)


class RunningHessian:
    """The Hessian of one layer's input, a running average over sequences."""

    def __init__(self, features: int) -> None:
        self.value = torch.zeros(features, features)
        self.sequences = 0

    def add(self, sequence: Tensor) -> None:
        """Takes (tokens, features) into account."""
        self.value *= self.sequences / (self.sequences + 1)
        self.sequences += 1
        scaled = sequence.float() * (2 / self.sequences) ** 0.5
        self.value += scaled.T @ scaled


def sparsegpt(weight: Tensor, hessian: Tensor, sparsity: float, block: int = 128) -> Tensor:
    """Returns the pruned and repaired weight; the threshold is one for each block of columns."""
    result, damped = weight.clone(), hessian.clone()
    damped.diagonal().add_(0.01 * damped.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    upper = torch.linalg.cholesky(inverse, upper=True)
    for begin in range(0, weight.shape[1], block):
        end = min(begin + block, weight.shape[1])
        columns, factor = result[:, begin:end], upper[begin:end, begin:end]
        errors = torch.zeros_like(columns)
        loss = columns.square() / factor.diagonal().square()
        limit = loss.flatten().sort().values[round(loss.numel() * sparsity)]
        for i in range(end - begin):
            kept = torch.where(loss[:, i] < limit, 0, columns[:, i])
            errors[:, i] = (columns[:, i] - kept) / factor[i, i]
            columns[:, i:] -= errors[:, i : i + 1] * factor[i : i + 1, i:]
            columns[:, i] = kept
        result[:, end:] -= errors @ upper[begin:end, end:]
    return result


def dsnot(
    weight: Tensor, sums: Tensor, norm: Tensor, variance: Tensor, keep: Tensor, cycles: int = 50
) -> Tensor:
    """Returns Wanda's mask after the swaps, without a stop at a change of sign."""
    shares = (weight * sums).double()
    mask, rows = keep.clone(), torch.arange(len(weight))
    error = (shares * ~keep).sum(1)
    grow = ((shares / variance) * ~keep).sort(dim=1, stable=True).indices
    cheap = (weight.abs() * norm).masked_fill(~keep, torch.inf).sort(dim=1, stable=True).indices
    signs = shares.gather(1, cheap).sign().masked_fill(~keep.gather(1, cheap), 0)
    down = torch.where(signs < 0, 0, 1).sort(dim=1, stable=True).indices
    up = torch.where(signs > 0, 0, 1).sort(dim=1, stable=True).indices
    places = torch.zeros(4, len(weight), dtype=torch.long)
    active = error.abs() > 0.1
    for _ in range(cycles):
        positive = error > 0
        grown = torch.where(positive, grow[rows, -1 - places[0]], grow[rows, places[1]])
        partner = torch.where(positive, down[rows, places[2]], up[rows, places[3]])
        given_up = cheap[rows, partner]
        places[0] += positive
        places[1] += ~positive
        places[2] += positive
        places[3] += ~positive
        active &= error.abs() > 0.1
        mask[rows[active], given_up[active]] = False
        mask[rows[active], grown[active]] = True
        error = torch.where(active, error + shares[rows, given_up] - shares[rows, grown], error)
    return mask
