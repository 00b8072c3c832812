"""Linear layers with a sparse weight or a gate, beside dense ones of every type.

All contenders run in turn in one process. Before each product 96 MiB of other memory are read, so
that no weight is in the cache, as in a model that is larger than it. A time is the median after a
warm-up, a ratio one of medians. Each asked bound is printed with what was found; it is met from
0.9 of it on. Weights in bfloat16 meet inputs in bfloat16, others float32 (PyTorch's int8 and int4
products take bfloat16 only). Of a gated product the selection is timed too. The read limit is the
best of many passes over 256 MiB, by a sum and by the dense product here.

Run: python benchmarks/bench_linear.py [--outputs 11008] [--inputs 4096] [--threads 2]
     [--rounds 15] [--quick]
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecraft.kernels.linear import Bitmask, ByInput, Csr, Dense, Gate, native_status
from sparsecraft.kernels.linear.format import WeightFormat
from sparsecraft.kernels.linear.quantise import quantised

FLUSH_BYTES = 96 << 20
READ_BYTES = 256 << 20
TOLERANCE = 0.9
GROUP = 64

Product = Callable[[Tensor], object]


@dataclass
class Contender:
    """A way to multiply, the bytes that one product must read, and the input that it takes."""

    name: str
    product: Product
    nbytes: float
    narrow: bool = False


@dataclass
class Bound:
    """What a contender is asked to be, in times another's speed."""

    name: str
    over: str
    factor: float


def of_format(name: str, packed: WeightFormat) -> Contender:
    """Returns the contender of a packed weight."""
    return Contender(name, packed.multiply, packed.nbytes, packed.dtype == "bfloat16")


def of_torch(weight: Tensor) -> Iterator[Contender]:
    """Yields what PyTorch has: float32, bfloat16, and its int8 and int4 products."""
    linear = torch.nn.functional.linear
    narrow = weight.bfloat16()
    yield Contender("torch float32", lambda x: linear(x, weight), weight.nbytes)
    yield Contender("torch bfloat16", lambda x: linear(x, narrow), narrow.nbytes, narrow=True)
    for make in (_int8_of_torch, _int4_of_torch):
        try:
            contender = make(weight)
            contender.product(torch.zeros(1, weight.shape[1], dtype=torch.bfloat16))
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            print(f"left out: {make.__name__.strip('_')}: {str(error).splitlines()[0]}")
        else:
            yield contender


def _int8_of_torch(weight: Tensor) -> Contender:
    entries, scales = quantised(weight)
    narrow = scales.bfloat16()
    nbytes = entries.nbytes + narrow.nbytes
    return Contender(
        "torch int8pack", lambda x: torch._weight_int8pack_mm(x, entries, narrow), nbytes, True
    )


def _int4_of_torch(weight: Tensor) -> Contender:
    outputs, inputs = weight.shape
    groups = weight.view(outputs, -1, GROUP)
    scales = (groups.abs().amax(-1, keepdim=True) / 7).clamp_min(1e-12)
    codes = ((groups / scales).round() + 8).clamp_(0, 15).to(torch.int32).view(outputs, inputs)
    factors = torch.stack([scales.squeeze(-1), torch.zeros_like(scales.squeeze(-1))], -1)
    factors = factors.transpose(0, 1).contiguous().bfloat16()
    stored = torch._convert_weight_to_int4pack_for_cpu(codes, 1)
    return Contender(
        "torch int4pack",
        lambda x: torch._weight_int4pack_mm_for_cpu(x, stored, GROUP, factors),
        stored.nbytes + factors.nbytes,
        True,
    )


def pruned(weight: Tensor, sparsity: float) -> Tensor:
    """Returns the weight with so many zeros, chosen at random."""
    generator = torch.Generator().manual_seed(1)
    return weight * (torch.rand(weight.shape, generator=generator) >= sparsity)


def of_gates(weight: Tensor, sparsities: list[float]) -> Iterator[Contender]:
    """Yields gated products of every type: by thresholds, and once by a count."""
    for dtype in ByInput.dtypes:
        packed = ByInput.pack(weight, dtype)
        gates = {f"{share:.0%}": (share, Gate(threshold=below(share))) for share in sparsities}
        gates["50% by count"] = (0.5, Gate(keep=weight.shape[1] // 2))
        for name, (sparsity, gate) in gates.items():
            yield Contender(
                f"gate {dtype} {name}",
                functools.partial(packed.multiply_gated, gate=gate),
                packed.nbytes * (1 - sparsity),
                narrow=dtype == "bfloat16",
            )


def below(share: float) -> float:
    """Returns the size below which this share of a normal input lies."""
    return 2**0.5 * float(torch.erfinv(torch.tensor(share)))


def contenders(weight: Tensor, rows: int, quick: bool) -> Iterator[Contender]:
    """Yields everyone who multiplies so many rows."""
    yield from of_torch(weight)
    for dtype in Dense.dtypes:
        yield of_format(f"dense {dtype}", Dense.pack(weight, dtype))
    if rows == 1:
        yield from of_gates(weight, [0.5, 0.8] if quick else [0.5, 0.65, 0.8, 0.9])
    for sparsity in [0.5, 0.9] if quick else [0.5, 0.8, 0.9, 0.95]:
        sparse = pruned(weight, sparsity)
        for kind in (Bitmask, Csr):
            for dtype in kind.dtypes:
                name = f"{kind.name} {dtype} {sparsity:.0%}"
                yield of_format(name, kind.pack(sparse, dtype))


BOUNDS = {
    1: [
        *(Bound(f"gate {t} 50%", f"best {t}", 1.8) for t in ("float32", "bfloat16")),
        *(Bound(f"gate {t} 80%", f"best {t}", 4.5) for t in ("float32", "bfloat16")),
        Bound("gate float32 50%", "torch float32", 2.7),
        Bound("gate float32 80%", "torch float32", 7.0),
        Bound("gate int8 50%", "best int8", 1.7),
        Bound("bitmask bfloat16 50%", "best bfloat16", 1.6),
        Bound("bitmask bfloat16 50%", "torch bfloat16", 3.0),
        Bound("csr float32 90%", "torch float32", 8.0),
    ],
    32: [Bound("csr float32 50%", "torch float32", 2.0)],
}
DENSE_OF = {
    "best float32": ("dense float32", "torch float32"),
    "best bfloat16": ("dense bfloat16", "torch bfloat16"),
    "best int8": ("dense int8", "torch int8pack"),
}


def read_limit(rounds: int) -> float:
    """Returns the most bytes a second that a pass over much memory has read."""
    memory = torch.ones(READ_BYTES // 4 // 4096, 4096)
    product, x = Dense.pack(memory).multiply, torch.ones(1, 4096)
    best = 0.0
    for read in [memory.sum, lambda: product(x)] * rounds:
        start = time.perf_counter()
        read()
        best = max(best, memory.nbytes / (time.perf_counter() - start))
    return best


def measured(found: list[Contender], rows: int, inputs: int, rounds: int) -> dict[str, float]:
    """Returns the median seconds of each, run in turn after two warm-ups."""
    generator = torch.Generator().manual_seed(2)
    wide = [torch.randn(rows, inputs, generator=generator) for _ in range(16)]
    narrow = [x.bfloat16() for x in wide]
    other = torch.ones(FLUSH_BYTES // 4)
    spent: dict[str, list[float]] = {each.name: [] for each in found}
    for turn in range(rounds + 2):
        for each in found:
            x = (narrow if each.narrow else wide)[turn % len(wide)]
            other.sum()
            start = time.perf_counter()
            each.product(x)
            if turn >= 2:
                spent[each.name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in spent.items()}


def print_table(found: list[Contender], times: dict[str, float], limit: float) -> None:
    """Prints time, speed beside PyTorch's, and the share of the read limit."""
    names = ("ms", "x t.float32", "x t.bfloat16", "MB", "of limit")
    print(f"{'':28s}" + "".join(f"{name:>13s}" for name in names))
    for each in found:
        seconds = times[each.name]
        columns = (
            f"{1e3 * seconds:13.3f}",
            f"{times['torch float32'] / seconds:13.2f}",
            f"{times['torch bfloat16'] / seconds:13.2f}",
            f"{each.nbytes / 1e6:13.1f}",
            f"{each.nbytes / seconds / limit:13.2f}",
        )
        print(f"{each.name:28s}" + "".join(columns))


def print_bounds(times: dict[str, float], rows: int) -> None:
    """Prints what was asked, what was found, and whether it is met."""
    for bound in BOUNDS.get(rows, []):
        rivals = [name for name in DENSE_OF.get(bound.over, (bound.over,)) if name in times]
        if bound.name not in times or not rivals:
            print(f"{bound.name} over {bound.over}: not measured")
            continue
        rival = min(rivals, key=lambda name: times[name])
        ratio = times[rival] / times[bound.name]
        verdict = "met" if ratio >= TOLERANCE * bound.factor else "NOT MET"
        found = f"{bound.name} over {bound.over} ({rival}): {ratio:.2f}"
        print(f"{found}, asked {bound.factor}: {verdict}")


def main() -> None:
    """Measures one shape at one and at 32 rows."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--outputs", type=int, default=11008)
    options.add_argument("--inputs", type=int, default=4096)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--rows", type=int, nargs="+", default=[1, 32])
    options.add_argument("--quick", action="store_true", help="fewer densities and 5 rounds")
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.set_grad_enabled(False)
    print(native_status())
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(chosen.outputs, chosen.inputs, generator=generator) / chosen.inputs**0.5
    limit = read_limit(5 if chosen.quick else 20)
    print(f"read limit with {chosen.threads} threads: {limit / 1e9:.1f} GB/s")
    for rows in chosen.rows:
        print(f"\n{chosen.outputs} x {chosen.inputs}, {rows} rows")
        found = list(contenders(weight, rows, chosen.quick))
        rounds = 5 if chosen.quick else chosen.rounds
        times = measured(found, rows, chosen.inputs, rounds)
        print_table(found, times, limit)
        print_bounds(times, rows)


if __name__ == "__main__":
    main()
