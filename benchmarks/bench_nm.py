"""N:M masks of a matrix, beside torch.topk in groups and a rank comparison in torch.

All contenders run in turn in one process; a ratio is one of medians. With one thread, processor
time is taken; with more, the clock.

Run: python benchmarks/bench_nm.py [--size 4096] [--threads 1 2] [--rounds 5]
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsecraft.kernels.backends import describe
from sparsecraft.kernels.nm import nm_mask
from turns import medians, parser, settings


def topk_mask(scores: Tensor, keep: int, of: int) -> Tensor:
    """Returns the mask the straightforward way: the top k of each group, scattered."""
    groups = scores.view(-1, of)
    chosen = groups.topk(keep, dim=1, sorted=False).indices
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(1, chosen, True).view(scores.shape)


def rank_mask(scores: Tensor, keep: int, of: int) -> Tensor:
    """Returns the mask by comparing all pairs of places, each over all groups at once."""
    places = scores.view(-1, of).unbind(1)
    ranks = [torch.full(places[0].shape, of - 1 - i, dtype=torch.int8) for i in range(of)]
    for i in range(of):
        for j in range(i + 1, of):
            wins = (places[i] >= places[j]).to(torch.int8)
            ranks[i] -= wins
            ranks[j] += wins
    return (torch.stack(ranks, 1) < keep).view(scores.shape)


def measure(scores: Tensor, keep: int, of: int, threads: int, rounds: int) -> None:
    """Prints one line of the table, after a check that all masks are equal."""
    ours = nm_mask(scores, keep, of)
    if not torch.equal(ours, rank_mask(scores, keep, of)):
        raise SystemExit("the masks differ")
    baseline = topk_mask(scores, keep, of)  # free in its choice among ties
    if float((scores * baseline).double().sum()) != float((scores * ours).double().sum()):
        raise SystemExit("the kept scores differ")
    times = medians(
        {
            "topk": lambda: topk_mask(scores, keep, of),
            "ranks": lambda: rank_mask(scores, keep, of),
            "ours": lambda: nm_mask(scores, keep, of),
        },
        rounds,
        threads,
    )
    columns = "".join(f"{1e3 * seconds:10.1f}" for seconds in times.values())
    ratios = f"{times['topk'] / times['ours']:10.1f}{times['ranks'] / times['ours']:10.1f}"
    name = f"{str(scores.dtype).removeprefix('torch.')} {keep}:{of}"
    print(f"{name:16s}{threads:8d}{columns}{ratios}")


def main() -> None:
    """Measures 2:4, 4:8 and 8:16."""
    options = parser(__doc__)
    options.add_argument("--size", type=int, default=4096)
    chosen = options.parse_args()
    print(describe())
    print(f"{'':16s}{'threads':>8s}{'topk ms':>10s}{'ranks ms':>10s}{'ours ms':>10s}", end="")
    print(f"{'x topk':>10s}{'x ranks':>10s}")
    weight = torch.randn(chosen.size, chosen.size, generator=torch.Generator().manual_seed(0))
    for dtype, threads in settings(chosen):
        for keep, of in ((2, 4), (4, 8), (8, 16)):
            measure(weight.abs().to(dtype), keep, of, threads, chosen.rounds)


if __name__ == "__main__":
    main()
