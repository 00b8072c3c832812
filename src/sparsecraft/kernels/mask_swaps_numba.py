"""Swaps in compiled loops, for tensors on the CPU; nothing is sorted.

A row needs only the first few of its candidates. Their worths are floats above zero and are
compared by their bits, 0 standing for no candidate. The best of every 64 columns is kept beside
them, so that taking one candidate looks at one block and at the blocks' best. Losses are summed in
float64 in another order than the reference's, and may differ from them in the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from sparsecraft.kernels.compiled import compiled
from sparsecraft.kernels.mask_swaps import Stop, Swaps
from sparsecraft.kernels.threads import in_threads, shares

BLOCK = 64
LANES = 16
# A thread is started for each so many entries.
PER_THREAD = 1 << 17
_HIGHEST = np.int32(2**31 - 1)


def swap_in_rows(
    weight: Tensor, sums: Tensor, spreads: Tensor, norms: Tensor, keep: Tensor, stop: Stop
) -> Swaps:
    """Returns the masks after swaps of any two entries of a row; see `mask_swaps`."""
    columns = [_array(each) for each in (sums, spreads, norms)]
    limits = (stop.cycles, stop.threshold, stop.same_sign)
    return _by_rows(lambda band: _swap_rows(*band, *columns, *limits), [weight], keep)


def swap_in_groups(
    weight: Tensor,
    sums: Tensor,
    spreads: Tensor,
    scores: Tensor,
    keep: Tensor,
    of: int,
    stop: Stop,
) -> Swaps:
    """Returns the masks after swaps within groups of columns; see `mask_swaps`."""
    columns = [_array(each) for each in (sums, spreads)]
    limits = (of, stop.cycles, stop.threshold, stop.same_sign)
    return _by_rows(lambda band: _swap_groups(*band, *columns, *limits), [weight, scores], keep)


def _by_rows(
    work: Callable[[Sequence[np.ndarray]], None], matrices: Sequence[Tensor], keep: Tensor
) -> Swaps:
    """Returns the swaps, bands of rows dealt out to threads.

    Args:
        work: Gets the rows of the matrices, of the mask given and of all fields of the outcome.
        matrices: float32 (rows, columns).
        keep: The mask given.
    """
    rows = keep.shape[0]
    losses = torch.zeros(2, rows, dtype=torch.float64)
    kept = keep.clone(memory_format=torch.contiguous_format)
    swaps = Swaps(kept, losses[0], losses[1], torch.zeros(rows, dtype=torch.int64))
    whole = [_array(each) for each in (*matrices, keep, *vars(swaps).values())]
    numbers = range(rows)
    bands = shares(numbers, [keep.shape[1]] * rows, PER_THREAD)
    in_threads(lambda band: work([each[band[0] : band[-1] + 1] for each in whole]), bands)
    return swaps


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().contiguous().numpy()
    return array


@compiled
def _swap_rows(
    weight, given, keep, before, after, swaps, sums, spreads, norms, cycles, threshold, same_sign
):
    """Writes keep, before, after and swaps for every row."""
    blocks = (weight.shape[1] + BLOCK - 1) // BLOCK
    grow, give_up = np.zeros((2, 2, blocks * BLOCK), np.int32)
    best_grow, best_give_up = np.zeros((2, 2, blocks), np.int32)
    for r in range(weight.shape[0]):
        row = weight[r]
        loss = lost(row, sums, given[r])
        before[r] = loss
        filled = (False, False)
        for _ in range(cycles):
            if not abs(loss) > threshold:
                break
            side = int(loss > 0)
            if not filled[side]:
                rank_pruned(row, sums, spreads, given[r], side, grow[side], best_grow[side])
                rank_kept(row, sums, norms, given[r], side, give_up[side], best_give_up[side])
                filled = (filled[0] or side == 0, filled[1] or side == 1)
            grown = take(grow[side], best_grow[side])
            cut = take(give_up[side], best_give_up[side])
            if grown < 0 or cut < 0:
                break
            moved = loss + np.float64(row[cut] * sums[cut]) - np.float64(row[grown] * sums[grown])
            if same_sign and np.sign(moved) != np.sign(loss):
                break
            keep[r, cut], keep[r, grown], loss = False, True, moved
            swaps[r] += 1
        after[r] = loss


@compiled
def _swap_groups(
    weight, scores, given, keep, before, after, swaps, sums, spreads, of, cycles, threshold,
    same_sign,
):  # fmt: skip
    """Writes keep, before, after and swaps for every row."""
    blocks = (weight.shape[1] + BLOCK - 1) // BLOCK
    grow = np.zeros((2, blocks * BLOCK), np.int32)
    best_grow = np.zeros((2, blocks), np.int32)
    for r in range(weight.shape[0]):
        row = weight[r]
        loss = lost(row, sums, given[r])
        before[r] = loss
        filled = (False, False)
        for _ in range(cycles):
            if not abs(loss) > threshold:
                break
            side = int(loss > 0)
            if not filled[side]:
                rank_pruned(row, sums, spreads, given[r], side, grow[side], best_grow[side])
                filled = (filled[0] or side == 0, filled[1] or side == 1)
            grown = take(grow[side], best_grow[side])
            if grown < 0:
                break
            cut = cheapest(scores[r], given[r], keep[r], grown - grown % of, of)
            if cut < 0:
                continue
            moved = loss + np.float64(row[cut] * sums[cut]) - np.float64(row[grown] * sums[grown])
            if same_sign and np.sign(moved) != np.sign(loss):
                break
            keep[r, cut], keep[r, grown], loss = False, True, moved
            swaps[r] += 1
        after[r] = loss


@compiled
def lost(row, sums, given):
    """Returns the sum of row * sums over the pruned entries, in several lanes."""
    lanes = np.zeros(LANES, np.float64)
    whole = row.size - row.size % LANES
    for start in range(0, whole, LANES):
        for i in range(LANES):
            share = row[start + i] * sums[start + i]
            lanes[i] += np.float64(np.float32(0) if given[start + i] else share)
    total = lanes.sum()
    for j in range(whole, row.size):
        if not given[j]:
            total += np.float64(row[j] * sums[j])
    return total


@compiled
def rank_pruned(row, sums, spreads, given, side, keys, best):
    """Writes the keys of the pruned entries that take the loss back, steadiest first."""
    sign = np.float32(1 if side else -1)
    for j in range(row.size):
        key = np.float32(sign * (row[j] * sums[j]) / spreads[j]).view(np.int32)
        key = np.int32(key & (np.int32(given[j]) - np.int32(1)))
        keys[j] = key if key > 0 else np.int32(0)
    mark_best(keys, best)


@compiled
def rank_kept(row, sums, norms, given, side, keys, best):
    """Writes the keys of the kept entries whose loss makes up for the row's, cheapest first."""
    sign = np.float32(1 if side else -1)
    for j in range(row.size):
        share = np.float32(sign * (row[j] * sums[j]))
        cost = np.float32(abs(row[j]) * norms[j]).view(np.int32)
        candidate = np.int32(given[j]) & np.int32(share < 0)
        keys[j] = np.int32((_HIGHEST - cost) & -candidate)
    mark_best(keys, best)


@compiled
def mark_best(keys, best):
    """Writes the highest key of every block."""
    for b in range(best.size):
        best[b] = highest_of(keys[b * BLOCK : (b + 1) * BLOCK])


@compiled
def highest_of(keys):
    """Returns the highest key, at least 0."""
    highest = np.int32(0)
    for j in range(keys.size):
        highest = max(highest, keys[j])
    return highest


@compiled
def take(keys, best):
    """Returns the first column of the highest key and strikes it off, or -1 if none is left."""
    highest = highest_of(best)
    if highest == 0:
        return -1
    block = 0
    while best[block] != highest:
        block += 1
    column = block * BLOCK
    while keys[column] != highest:
        column += 1
    keys[column] = 0
    best[block] = highest_of(keys[block * BLOCK : (block + 1) * BLOCK])
    return column


@compiled
def cheapest(scores, given, keep, begin, of):
    """Returns the first column of lowest score that was kept from the start, or -1."""
    found = -1
    for j in range(begin, begin + of):
        if given[j] and keep[j] and (found < 0 or scores[j] < scores[found]):
            found = j
    return found
