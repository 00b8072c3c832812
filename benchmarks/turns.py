"""Times contenders in turn, so that a busy moment hits all of them, and reads common options."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import torch


def medians(
    contenders: dict[str, Callable[[], object]], rounds: int, threads: int
) -> dict[str, float]:
    """Returns the median seconds of each contender, run in turn after one warm-up."""
    clock = time.process_time if threads == 1 else time.perf_counter
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, run in contenders.items():
            start = clock()
            run()
            if turn:
                spent[name].append(clock() - start)
    return {name: statistics.median(times) for name, times in spent.items()}


def parser(doc: str) -> argparse.ArgumentParser:
    """Returns a parser with the options that the kernels' benchmarks share.

    Args:
        doc: The module's docstring; its first line is shown.
    """
    made = argparse.ArgumentParser(description=doc.splitlines()[0])
    made.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--dtype", nargs="+", default=["float32"])
    return made


def settings(chosen: argparse.Namespace) -> Iterator[tuple[torch.dtype, int]]:
    """Yields each type with each number of threads, which is set."""
    for name in chosen.dtype:
        for threads in chosen.threads:
            torch.set_num_threads(threads)
            yield getattr(torch, name), threads
