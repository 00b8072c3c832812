"""Exact global magnitude selection over a list of tensors, beside torch.kthvalue.

The weights have the shapes of a small language model, about 40 tensors. The baseline joins their
magnitudes and calls `torch.kthvalue`; its joining and taking of magnitudes is timed apart, and
the ratios count only what follows. All contenders run in turn in one process; a ratio is one of
medians. With one thread, processor time is taken; with more, the clock.

Run: python benchmarks/bench_selection.py [--numel 100000000] [--threads 1 2] [--rounds 5]
"""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from sparsecraft.kernels.backends import describe
from sparsecraft.kernels.selection import keep_largest, threshold_largest
from turns import medians, parser, settings


def weights(numel: int, dtype: torch.dtype) -> list[Tensor]:
    """Returns about 40 weight-like tensors with this many entries in all."""
    width = max(64, int((numel / 98) ** 0.5) // 64 * 64)
    shapes: list[tuple[int, ...]] = [(2 * width, width)]
    for _ in range(8):
        shapes += [(width, width), (width, width), (4 * width, width), (width, 4 * width), (width,)]
    rest = numel - sum(torch.Size(shape).numel() for shape in shapes)
    shapes.append((rest // width, width))
    noise = torch.Generator().manual_seed(0)
    return [
        (torch.randn(shape, generator=noise) / (20 + place)).to(dtype)
        for place, shape in enumerate(shapes)
    ]


def joined_magnitudes(tensors: list[Tensor]) -> Tensor:
    """Returns all magnitudes in one tensor, as the baseline needs them."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors]).abs_()


def kth(joined: Tensor, keep: int) -> Tensor:
    """Returns the keep-th largest entry, the straightforward way."""
    return joined.kthvalue(joined.numel() - keep + 1).values


def kth_masks(tensors: list[Tensor], joined: Tensor, keep: int) -> list[Tensor]:
    """Returns the masks of what reaches the threshold, the straightforward way."""
    threshold = kth(joined, keep)
    return [tensor.abs() >= threshold for tensor in tensors]


def peak_bytes(run: Callable[[], object]) -> int:
    """Returns how far resident memory rises above the present while this runs (glibc only).

    Sampled every millisecond by another thread, which the compiled loops let run. Memory freed
    by earlier runs is given back first; it would hide what this one takes.
    """
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = peak = _resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    kept = run()
    peak = max(peak, _resident())
    done.set()
    watcher.join()
    del kept
    return peak - before


def _resident() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def check(tensors: list[Tensor], joined: Tensor, keep: int) -> None:
    """Raises unless the threshold is the baseline's and the masks keep exactly so many."""
    threshold = kth(joined, keep)
    if threshold_largest(tensors, keep, absolute=True) != threshold:
        raise SystemExit("the thresholds differ")
    masks = keep_largest(tensors, keep, absolute=True)
    pairs = list(zip(masks, tensors, strict=True))
    above = sum(int((mask & (tensor.abs() > threshold)).sum()) for mask, tensor in pairs)
    kept = sum(int(mask.sum()) for mask in masks)
    reach = sum(int((mask & (tensor.abs() >= threshold)).sum()) for mask, tensor in pairs)
    if (kept, reach) != (keep, keep) or above != int((joined > threshold).sum()):
        raise SystemExit("the masks differ")


def measure(numel: int, dtype: torch.dtype, density: float, threads: int, rounds: int) -> None:
    """Prints the table of one setting."""
    tensors = weights(numel, dtype)
    keep = int(numel * density)
    joined = joined_magnitudes(tensors)
    check(tensors, joined, keep)
    times = medians(
        {
            "joining |w|": lambda: joined_magnitudes(tensors),
            "kthvalue": lambda: kth(joined, keep),
            "kthvalue + masks": lambda: kth_masks(tensors, joined, keep),
            "threshold_largest": lambda: threshold_largest(tensors, keep, absolute=True),
            "keep_largest": lambda: keep_largest(tensors, keep, absolute=True),
        },
        rounds,
        threads,
    )
    extra = peak_bytes(lambda: keep_largest(tensors, keep, absolute=True)) - numel
    share = extra / sum(tensor.nbytes for tensor in tensors)
    print(f"\n{numel:,} x {dtype}, keep {density:.0%}, {len(tensors)} tensors, {threads} thread(s)")
    for name, seconds in times.items():
        print(f"  {name:20s}{1e3 * seconds:10.1f} ms")
    print(f"  threshold: x{times['kthvalue'] / times['threshold_largest']:.1f}")
    print(f"  masks:     x{times['kthvalue + masks'] / times['keep_largest']:.1f}")
    print(f"  memory beside the masks: {share:.2%} of the scores' bytes")


def main() -> None:
    """Measures each setting."""
    options = parser(__doc__)
    options.add_argument("--numel", type=int, default=100_000_000)
    options.add_argument("--density", type=float, nargs="+", default=[0.1])
    chosen = options.parse_args()
    print(describe())
    for dtype, threads in settings(chosen):
        for density in chosen.density:
            measure(chosen.numel, dtype, density, threads, chosen.rounds)


if __name__ == "__main__":
    main()
