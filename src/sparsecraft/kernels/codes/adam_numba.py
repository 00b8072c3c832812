"""The pass of Adam in compiled loops: a row stays in the nearest cache between its readings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from sparsecraft.kernels.codes.adam import AdamStep
from sparsecraft.kernels.compiled import compiled_sums
from sparsecraft.kernels.threads import in_threads, shares

# Entries that pay for a thread.
PER_THREAD = 1 << 18


def adam_rows(tensors: Sequence[Tensor], step: AdamStep, unit: bool) -> None:
    """Changes a weight and its moments in place; see `adam.adam_step`.

    Args:
        tensors: Weight, gradient, mean, square, contiguous.
        step: Rate and decays.
        unit: Whether rows are kept at norm one.
    """
    arrays = [tensor.numpy() for tensor in tensors]
    kind = arrays[0].dtype.type
    numbers = [
        kind(number)
        for number in (
            step.scale,
            step.beta1,
            1 - step.beta1,
            step.beta2,
            1 - step.beta2,
            step.size,
            1 / step.correction,
            step.epsilon,
        )
    ]
    if not unit:
        arrays = [array.reshape(-1) for array in arrays]
    loop = _unit_rows if unit else _entries
    count, width = len(arrays[0]), tensors[0].shape[1] if unit else 1
    height = max(1, PER_THREAD // max(1, width))
    bands = [(first, min(count, first + height)) for first in range(0, count, height)]

    def work(share: Sequence[tuple[int, int]]) -> None:
        loop(*arrays, *numbers, share[0][0], share[-1][1])

    in_threads(work, shares(bands, [(b - a) * width for a, b in bands], PER_THREAD))


@compiled_sums
def _entries(
    weight, gradient, mean, square, scale, beta1, rest1, beta2, rest2, size, inverse, epsilon,
    first, last,
):  # fmt: skip
    # Counted from zero, so that the index is known not to be negative and lanes can be used.
    w, grad, m, v = weight[first:last], gradient[first:last], mean[first:last], square[first:last]
    for i in range(w.size):
        g = grad[i] * scale
        m[i] = beta1 * m[i] + rest1 * g
        v[i] = beta2 * v[i] + rest2 * (g * g)
        w[i] -= size * m[i] / (np.sqrt(v[i]) * inverse + epsilon)


@compiled_sums
def _unit_rows(
    weight, gradient, mean, square, scale, beta1, rest1, beta2, rest2, size, inverse, epsilon,
    first, last,
):  # fmt: skip
    zero, one = weight.dtype.type(0), weight.dtype.type(1)
    for i in range(first, last):
        w, grad, m, v = weight[i], gradient[i], mean[i], square[i]
        along, length = zero, zero
        for d in range(w.size):
            along += grad[d] * w[d]
            length += w[d] * w[d]
        along = scale * along / length if length > zero else zero
        length = zero
        for d in range(w.size):
            g = scale * grad[d] - along * w[d]
            m[d] = beta1 * m[d] + rest1 * g
            v[d] = beta2 * v[d] + rest2 * (g * g)
            w[d] -= size * m[d] / (np.sqrt(v[d]) * inverse + epsilon)
            length += w[d] * w[d]
        factor = one / np.sqrt(length) if length > zero else zero
        for d in range(w.size):
            w[d] *= factor
