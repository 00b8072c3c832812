"""Removal with repair in compiled loops: a row at a time, in cache; only removed entries cost."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sparsecraft.kernels.compiled import compiled
from sparsecraft.kernels.threads import in_threads, shares

# A thread is started for each so many entries.
PER_THREAD = 1 << 14


def remove_and_repair_rows(
    weight: Tensor, factor: Tensor, keep: Tensor, groups: tuple[int, int] | None
) -> Tensor:
    """Does what `sparsecraft.kernels.repair.remove_and_repair` does."""
    rows, columns = weight.shape
    errors = torch.zeros(rows, columns)
    # Contiguous copies: the loops run over whole rows of them.
    block, marks, upper = weight.contiguous(), keep.contiguous(), factor.contiguous().numpy()
    kept, of = groups or (0, 0)

    def work(share: range) -> None:
        part = slice(share.start, share.stop)
        _rows(block.numpy()[part], upper, marks.numpy()[part], errors.numpy()[part], kept, of)

    height = max(1, PER_THREAD // max(1, columns))
    bands = [range(start, min(start + height, rows)) for start in range(0, rows, height)]
    runs = shares(bands, [len(band) * columns for band in bands], PER_THREAD)
    in_threads(work, [range(run[0].start, run[-1].stop) for run in runs])
    weight.copy_(block)
    keep.copy_(marks)
    return errors


@compiled
def _rows(weight, factor, keep, errors, kept, of):
    columns = weight.shape[1]
    for row in range(weight.shape[0]):
        values, marks, lost = weight[row], keep[row], errors[row]
        for i in range(columns):
            if of > 0 and i % of == 0:
                _mark_group(values, factor, marks, i, kept, of)
            if marks[i]:
                continue
            line = factor[i]
            error = values[i] / line[i]
            lost[i] = error
            for j in range(i, columns):
                values[j] -= error * line[j]


@compiled
def _mark_group(values, factor, marks, begin, kept, of):
    """Keeps the largest of a group; of equal ones the earlier."""
    loss = np.empty(of, np.float32)
    for i in range(of):
        diagonal = factor[begin + i, begin + i]
        loss[i] = (values[begin + i] * values[begin + i]) / (diagonal * diagonal)
    for i in range(of):
        rank = 0
        for j in range(of):
            if loss[j] > loss[i] or (loss[j] == loss[i] and j < i):
                rank += 1
        marks[begin + i] = rank < kept
