"""Wanda, SparseGPT, DSnoT and their calibration beside a vectorised straightforward form of each.

Contenders run in turn in one process; a ratio is one of medians. With one thread, processor time
is taken; with more, the clock. Masks must be identical (for SparseGPT: the error on the
calibration data must be equal to 1 %).

Run: python benchmarks/bench_pruning.py [--threads 1 2] [--rounds 5] [--quick]
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import straightforward_pruning as plain
from sparsecraft.core.dsnot import dsnot_rows
from sparsecraft.core.kinds import Layer
from sparsecraft.core.statistics import Hessian, InputNorm, InputSum, InputVariance
from sparsecraft.kernels.backends import describe
from sparsecraft.methods.weights.sparsegpt import SparseGPT
from sparsecraft.methods.weights.wanda import Wanda
from turns import medians, parser

SPARSITY = 0.5
SIZES = ((2816, 1024), (2048, 2048))
ASKED = {
    ("wanda", (2816, 1024)): 6.0,
    ("wanda", (2048, 2048)): 6.0,
    ("dsnot", (2816, 1024)): 5.0,
    ("dsnot", (2048, 2048)): 3.0,
    ("sparsegpt", (2816, 1024)): 3.0,
    ("sparsegpt", (2048, 2048)): 1.8,
}
CALIBRATION_ASKED = 3.0


def drawn(*shape: int, seed: int) -> Tensor:
    """Returns normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def activations(features: int, sequences: int, tokens: int) -> list[Tensor]:
    """Returns sequences whose features differ in size, lean and depend on each other."""
    scale = (0.7 * drawn(features, seed=1)).exp()
    mix = torch.eye(features) + drawn(features, features, seed=2) / features**0.5
    lean = 0.3 * drawn(features, seed=3)
    return [(drawn(tokens, features, seed=10 + i) @ mix + lean) * scale for i in range(sequences)]


def observed(kind: type, sequences: list[Tensor]) -> Tensor:
    """Returns a statistic of the sequences."""
    statistic = kind(sequences[0].shape[1])
    for sequence in sequences:
        statistic.observe(sequence)
    return statistic.value


def methods(shape: tuple[int, int]) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Returns method to (straightforward, ours) after a check that they agree."""
    inputs = activations(shape[1], 8, 512)
    weight = drawn(*shape, seed=0)
    norm, sums, variance = (observed(k, inputs) for k in (InputNorm, InputSum, InputVariance))
    hessian = observed(Hessian, inputs)
    count = round(SPARSITY * shape[1])
    mask = plain.wanda(weight, norm, count)

    def ours_sparsegpt() -> Tensor:
        # A new tensor each time, so that the factor is made anew.
        layer = Layer("layer", 1 - SPARSITY, statistics={Hessian: hessian.clone()})
        return SparseGPT(sparsity=SPARSITY).prune(weight, layer).weight

    wanda_layer = Layer("layer", 1 - SPARSITY, statistics={InputNorm: norm})
    pairs: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
        "wanda": (
            lambda: plain.wanda(weight, norm, count),
            lambda: Wanda(sparsity=SPARSITY).prune(weight, wanda_layer).mask,
        ),
        "sparsegpt": (lambda: plain.sparsegpt(weight, hessian, SPARSITY), ours_sparsegpt),
        "dsnot": (
            lambda: plain.dsnot(weight, sums, norm, variance, mask),
            lambda: (
                dsnot_rows(
                    weight, sums, norm.double().square(), variance, mask, stop="threshold"
                ).keep
            ),
        ),
    }
    for name, (baseline, ours) in pairs.items():
        check(name, baseline(), ours(), weight, hessian)
    return pairs  # type: ignore[return-value]


def check(name: str, baseline: Tensor, ours: Tensor, weight: Tensor, hessian: Tensor) -> None:
    """Stops the benchmark where the two do not agree."""
    if name != "sparsegpt":
        differing = float((baseline != ours).float().mean())
        if differing > 1e-6:
            raise SystemExit(f"{name}: {differing:.2%} of the masks differ")
        return
    errors = [float((((w - weight) @ hessian) * (w - weight)).sum()) for w in (baseline, ours)]
    if abs(errors[0] / errors[1] - 1) > 0.01:
        raise SystemExit(f"sparsegpt: the errors are {errors}")


def block_inputs(hidden: int, feed_forward: int, tokens: int) -> dict[str, list[Tensor]]:
    """Returns the inputs of a Llama block's matrices; those that share one share the list."""
    attention, mixed, mlp = (activations(hidden, 4, tokens) for _ in range(3))
    wide = activations(feed_forward, 4, tokens)
    return {"q": attention, "k": attention, "v": attention, "o": mixed} | {
        "gate": mlp,
        "up": mlp,
        "down": wide,
    }


def calibrate_plainly(inputs: dict[str, list[Tensor]]) -> list[Tensor]:
    """Returns a Hessian for each matrix."""
    found = []
    for sequences in inputs.values():
        hessian = plain.RunningHessian(sequences[0].shape[1])
        for sequence in sequences:
            hessian.add(sequence)
        found.append(hessian.value)
    return found


def calibrate(inputs: dict[str, list[Tensor]]) -> list[Tensor]:
    """Returns a Hessian for each distinct input."""
    distinct = {id(sequences): sequences for sequences in inputs.values()}
    return [observed(Hessian, sequences) for sequences in distinct.values()]


def line(name: str, threads: int, times: dict[str, float], asked: float) -> None:
    """Prints one line of the table; a bound is met at nine tenths of it."""
    ratio = times["plain"] / times["ours"]
    verdict = "met" if ratio >= 0.9 * asked else "NOT met"
    print(
        f"{name:28s}{threads:8d}{1e3 * times['plain']:12.1f}{1e3 * times['ours']:12.1f}"
        f"{ratio:10.2f}{asked:8.1f}  {verdict}"
    )


def main() -> None:
    """Measures the three methods at two sizes, and the calibration of a block."""
    options = parser(__doc__)
    options.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    chosen = options.parse_args()
    sizes = ((256, 128), (256, 256)) if chosen.quick else SIZES
    print(describe())
    print(f"{'':28s}{'threads':>8s}{'plain ms':>12s}{'ours ms':>12s}{'ratio':>10s}{'asked':>8s}")
    for threads in chosen.threads:
        torch.set_num_threads(threads)
        for shape, full in zip(sizes, SIZES, strict=True):
            for name, (baseline, ours) in methods(shape).items():
                times = medians({"plain": baseline, "ours": ours}, chosen.rounds, threads)
                line(f"{name} {shape[0]}x{shape[1]}", threads, times, ASKED[name, full])
        for tokens in (256, 2048):
            inputs = block_inputs(*((64, 176) if chosen.quick else (1024, 2816)), tokens)
            times = medians(
                {
                    "plain": lambda i=inputs: calibrate_plainly(i),
                    "ours": lambda i=inputs: calibrate(i),
                },
                chosen.rounds,
                threads,
            )
            line(f"calibration, {tokens} tokens", threads, times, CALIBRATION_ASKED)


if __name__ == "__main__":
    main()
