"""Times contenders in turn, each with its weight where a model's next layer finds it: in memory.

While a model decodes, all other layers pass through the cache between two calls of one layer. A
layer timed alone, over and over, would find its weight in the cache and look faster than it ever
is; the smaller the format, the more so. So before every timed call a buffer of twice the cache is
read. That drives out the code and the input as well, which in a model are fresh from the layer
before; so each call is rehearsed first with a sliver of the weight. A model that fits into the
cache as a whole is timed without either.

With one thread the clock is that of the thread's processor time, which stands still while another
process has the core; with more, it is the wall's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sparsecraft.kernels.processor import cache_bytes

_LEAST_ROUNDS = 5
_MOST_ROUNDS = 25
_CLOSE = 1.25
Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Contender:
    """What is timed.

    Args:
        run: The product of one input.
        rehearse: The same with a sliver of the weight, by the same code.
    """

    run: Product
    rehearse: Product


@dataclass(frozen=True)
class Timing:
    """The timed calls of one contender, in seconds, in the order of the rounds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.seconds)

    def quartile(self, which: int) -> float:
        """Returns the first (1) or third (3) quartile."""
        if len(self.seconds) == 1:
            return self.seconds[0]
        return statistics.quantiles(self.seconds, n=4, method="inclusive")[which - 1]

    def gain_over(self, other: Timing) -> list[float]:
        """Returns how much faster this was than the other, round by round."""
        return [b / a for a, b in zip(self.seconds, other.seconds, strict=False)]


class Measure(Protocol):
    """How contenders are timed; replaced in tests, where nothing may depend on a clock."""

    def __call__(
        self,
        contenders: Mapping[str, Contender],
        inputs: Sequence[Tensor],
        *,
        baseline: str,
        cold: bool,
        seconds: float,
    ) -> dict[str, Timing]:
        """Returns the timing of each contender.

        Args:
            contenders: Name to what is timed.
            inputs: Taken in turn, one for each round.
            baseline: The contender that is kept to the end.
            cold: Whether weights are to come from memory.
            seconds: About how long it may take; every contender gets five rounds in any case.
        """


class CacheFlush:
    """Reads a buffer of twice the last-level cache, so that nothing else stays in it."""

    def __init__(self) -> None:
        self.buffer = torch.zeros(2 * cache_bytes() // 4)

    def __call__(self) -> None:
        """Empties the cache."""
        self.buffer.sum()


def measure_in_turns(
    contenders: Mapping[str, Contender],
    inputs: Sequence[Tensor],
    *,
    baseline: str,
    cold: bool,
    seconds: float,
) -> dict[str, Timing]:
    """Returns the timing of each contender; see `Measure`.

    All run once in each round, in alternating order. After five rounds only those near the fastest,
    and the baseline, are timed on.
    """
    flush = CacheFlush() if cold else None
    clock = clock_of(inputs[0])
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    begin = time.perf_counter()
    with torch.inference_mode():
        for contender in contenders.values():
            contender.run(inputs[0])
        running = list(contenders)
        for turn in range(_MOST_ROUNDS):
            for name in running if turn % 2 == 0 else reversed(running):
                spent[name].append(
                    _timed(contenders[name], inputs[turn % len(inputs)], flush, clock)
                )
            if turn + 1 >= _LEAST_ROUNDS:
                running = _leaders(spent, running, baseline)
                if len(running) == 1 or time.perf_counter() - begin > seconds:
                    break
    return {name: Timing(tuple(times)) for name, times in spent.items()}


def clock_of(x: Tensor) -> Callable[[], float]:
    """Returns the clock for products of this input, in seconds."""
    fine = time.get_clock_info("thread_time").resolution <= 1e-6
    alone = torch.get_num_threads() == 1 and not x.is_cuda
    return time.thread_time if alone and fine else time.perf_counter


def _timed(
    contender: Contender, x: Tensor, flush: CacheFlush | None, clock: Callable[[], float]
) -> float:
    if flush is not None:
        flush()
        contender.rehearse(x)
    _wait(x)
    begin = clock()
    contender.run(x)
    _wait(x)
    return clock() - begin


def _leaders(
    spent: Mapping[str, Sequence[float]], running: Sequence[str], baseline: str
) -> list[str]:
    medians = {name: statistics.median(spent[name]) for name in running}
    best = min(medians.values())
    return [name for name in running if name == baseline or medians[name] <= _CLOSE * best]


def _wait(x: Tensor) -> None:
    """Waits for the accelerator, which runs behind Python's back."""
    if x.is_cuda:
        torch.cuda.synchronize()
