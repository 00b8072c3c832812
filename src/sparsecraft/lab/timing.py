"""Latency beside dense: the two models take turns, so that a busy moment hits both.

Each round times the dense model and the arm one after the other, in alternating order. The figure
is the median over the rounds; the range from the fastest to the slowest round covers the median of
five rounds with 94 % confidence, whatever the distribution.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue

Batch = Mapping[str, Tensor]
LEAST_SECONDS = 0.02
"""A round lasts at least this long, so that the clock's steps do not matter."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Time of one forward pass, beside dense in the same rounds.

    Args:
        ms: Median, in milliseconds.
        ms_low: Fastest round.
        ms_high: Slowest round.
        dense_ms: Median of dense in the same rounds.
        ratio: Median over the rounds of dense time over this time; above 1 is faster.
        ratio_low: Least of those.
        ratio_high: Greatest of those.
        rounds: How many there were.
    """

    ms: float
    ms_low: float
    ms_high: float
    dense_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: int


def interleaved_latency(
    dense: nn.Module, arm: nn.Module, inputs: Mapping[int, Batch], *, rounds: int = 5
) -> dict[int, Latency]:
    """Returns the arm's latency for each batch size, measured in turns with dense.

    Args:
        dense: The reference, in evaluation mode.
        arm: The model to time; dense itself shows the noise of the measurement.
        inputs: Batch size to keyword arguments of the forward pass.
        rounds: How often both are timed, at least 3.

    Raises:
        InvalidValue: If there are fewer than 3 rounds.
    """
    if rounds < 3:
        raise InvalidValue(f"rounds={rounds} is too few for a median; take at least 3")
    return {size: _in_turns(dense, arm, batch, rounds) for size, batch in inputs.items()}


def repetitions(seconds: float) -> int:
    """Returns how many forward passes of this length make a round long enough to time."""
    return max(1, round(LEAST_SECONDS / max(seconds, 1e-6)))


def _in_turns(dense: nn.Module, arm: nn.Module, batch: Batch, rounds: int) -> Latency:
    # The first pass allocates and picks kernels; the second says how long one takes.
    repeat = []
    for model in (dense, arm):
        _seconds(model, batch, 1)
        repeat.append(repetitions(_seconds(model, batch, 1)))
    pairs = []
    for index in range(rounds):
        if index % 2 == 0:
            dense_time = _seconds(dense, batch, repeat[0])
            arm_time = _seconds(arm, batch, repeat[1])
        else:
            arm_time = _seconds(arm, batch, repeat[1])
            dense_time = _seconds(dense, batch, repeat[0])
        pairs.append((dense_time, arm_time))
    return _summary(pairs)


def _summary(pairs: list[tuple[float, float]]) -> Latency:
    arm_ms = [1000 * arm for _, arm in pairs]
    ratios = [dense / arm for dense, arm in pairs]
    return Latency(
        ms=statistics.median(arm_ms),
        ms_low=min(arm_ms),
        ms_high=max(arm_ms),
        dense_ms=statistics.median(1000 * dense for dense, _ in pairs),
        ratio=statistics.median(ratios),
        ratio_low=min(ratios),
        ratio_high=max(ratios),
        rounds=len(pairs),
    )


def _seconds(model: Any, batch: Batch, repeat: int) -> float:
    """Returns the seconds of one forward pass, averaged over `repeat` of them."""
    with torch.inference_mode():
        _wait(batch)
        begin = time.perf_counter()
        for _ in range(repeat):
            model(**batch)
        _wait(batch)
    return (time.perf_counter() - begin) / repeat


def _wait(batch: Batch) -> None:
    """Waits for the accelerator, which runs behind Python's back."""
    if any(tensor.is_cuda for tensor in batch.values()):
        torch.cuda.synchronize()
