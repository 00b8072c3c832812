"""The prox of the group envelope, beside torch.sort of as many numbers.

Groups have one float32 entry each, a tenth of them is asked for. Both contenders run in turn in one
process; a ratio is one of medians, and the slope is that of the least squares line through the
logarithms of groups and seconds. With one thread, processor time is taken; with more, the clock.

Run: python benchmarks/bench_group_envelope.py [--groups 10000 1000000] [--threads 1] [--rounds 5]
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor

from sparsecraft.core.group_envelope import GroupEnvelope
from sparsecraft.kernels.backends import describe, use_backend
from turns import medians

STEP = 0.1
# Up to here the way by sorting all breakpoints is checked against too.
CHECKED = 1_000_000


def check(x: Tensor, penalty: GroupEnvelope) -> None:
    """Raises unless the prox is the one that sorting gives."""
    with use_backend("torch"):
        expected = penalty.prox(x, STEP)
    if not torch.allclose(penalty.prox(x, STEP), expected, rtol=1e-6, atol=1e-9):
        raise SystemExit("the proxes differ")


def measure(groups: int, threads: int, rounds: int) -> float:
    """Prints one line of the table; returns the seconds of the prox."""
    torch.set_num_threads(threads)
    x = torch.randn(groups, generator=torch.Generator().manual_seed(0))
    penalty = GroupEnvelope(k=groups // 10)
    if groups <= CHECKED:
        check(x, penalty)
    times = medians({"sort": x.sort, "prox": lambda: penalty.prox(x, STEP)}, rounds, threads)
    sort, prox = times["sort"], times["prox"]
    print(f"{groups:12,d}{threads:8d}{1e3 * sort:12.2f}{1e3 * prox:12.2f}{prox / sort:12.2f}")
    return prox


def main() -> None:
    """Measures each number of groups, and how the time grows with it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = [10_000, 100_000, 1_000_000, 10_000_000]
    parser.add_argument("--groups", type=int, nargs="+", default=sizes)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    print(describe())
    print(f"{'groups':>12s}{'threads':>8s}{'sort ms':>12s}{'prox ms':>12s}{'prox/sort':>12s}")
    for threads in chosen.threads:
        seconds = [measure(groups, threads, chosen.rounds) for groups in chosen.groups]
        if len(seconds) > 1:
            slope = np.polyfit(np.log(chosen.groups), np.log(seconds), 1)[0]
            print(f"  log-log slope with {threads} thread(s): {slope:.2f}")


if __name__ == "__main__":
    main()
