"""Shares of a kernel's work, each in a thread of its own, on cores that are free for them.

A product of torch leaves OpenMP's threads spinning for some milliseconds, ready for the next one.
Where there are no more cores than threads, they take half the time of the cores from a kernel that
runs in other threads; so they are put to rest first, which costs a tenth of a millisecond.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

_SOFT = 1  # omp_pause_soft: what threads hold privately is kept


def in_threads(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Returns `work(item)` for each item, in order: the first here, each other in a new thread.

    The compiled kernels release the interpreter lock. Threads of Python's own leave nothing
    behind, so they survive a fork, which numba's and OpenMP's pools do not.
    """
    if len(items) < 2:
        return [work(item) for item in items]
    if len(items) + torch.get_num_threads() - 1 > _cores():
        rest_openmp()
    with ThreadPoolExecutor(len(items) - 1) as pool:
        others = [pool.submit(work, item) for item in items[1:]]
        return [work(items[0]), *(other.result() for other in others)]


def rest_openmp() -> bool:
    """Ends the waiting threads of OpenMP's pool of this thread; the next product makes new ones.

    Returns:
        Whether the runtime has such a call (OpenMP 5.0) and took it.

    Reference:
        OpenMP Application Programming Interface 5.0, omp_pause_resource_all.
    """
    pause = _pause()
    return pause is not None and pause(_SOFT) == 0


def shares(items: Sequence[Item], sizes: Sequence[int], smallest: int) -> list[Sequence[Item]]:
    """Returns the items in consecutive runs of about equal size, one for each thread.

    Args:
        items: What is dealt out.
        sizes: Work in each item.
        smallest: A run is given at least this much work, so that a thread pays for itself.
    """
    total = sum(sizes)
    runs = max(1, min(torch.get_num_threads(), total // smallest, len(items)))
    dealt: list[list[Item]] = [[] for _ in range(runs)]
    done = 0
    for item, size in zip(items, sizes, strict=True):
        dealt[min(runs - 1, (2 * done + size) * runs // (2 * total) if total else 0)].append(item)
        done += size
    return [run for run in dealt if run]


@functools.cache
def _pause() -> Callable[[int], int] | None:
    """Returns the call of the OpenMP that torch has loaded, or None."""
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).omp_pause_resource_all
    except (AttributeError, OSError, TypeError):  # no such symbol, or no such way to look for it
        return None
    return found


def _cores() -> int:
    """Returns how many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
