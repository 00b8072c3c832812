"""A training step of a TopK autoencoder, beside plain torch and the packages that others use.

Every contender lives in a process of its own, in the interpreter that has its package, and takes a
step when it is told to over a pipe, so that only one works at a time and all meet the same busy
moments; a ratio is one of medians. With one thread processor time is taken, with more the clock.
The peers need an environment of their own, given by --peers; without it they are "not installed".
The share of the matmul limit is the time of the encoder's product, in the contender's precision,
over the step's. A bound counts as met from 0.9 of it, as noise is about a tenth.

Before the timing, gradients are compared with those of dense products and autograd. --fvu trains
twice, with either precision, and compares the share of variance left. --memory takes the peak of
each process over what it held after its imports.

Run: python benchmarks/bench_sae.py --peers /path/to/peers/bin/python [--quick] [--memory] [--fvu]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sparsecraft.kernels.backends import describe
from sparsecraft.methods.codes.topk import TopK
from sparsecraft.model.sae import SAETraining, SparseAutoencoder
from sparsecraft.model.sae.objective import objective
from straightforward_sae import DenseTopK, synthetic
from turns import parser

HERE = ["plain", "ours", "ours_bfloat16", "gemm", "gemm_bfloat16"]
PEERS = ["saelens", "sparsify", "dictionary_learning"]
K = 32
MET = 0.9
GRADIENTS = 1e-5
FVU = 0.01
MEMORY = 0.6
# Speed of the first over the second.
BOUNDS = [
    ("ours", "plain", 4.5),
    ("ours", "saelens", 5.0),
    ("ours", "sparsify", 1.6),
    ("ours_bfloat16", "plain", 7.0),
]


@dataclass(frozen=True)
class Size:
    """One setting of the step."""

    d: int
    times: int
    batch: int
    threads: int

    @property
    def latents(self) -> int:
        """Of the dictionary."""
        return self.d * self.times

    def told(self) -> str:
        """Returns the line that a contender is told."""
        fields = {"d": self.d, "latents": self.latents, "k": K, "batch": self.batch}
        return json.dumps({**fields, "threads": self.threads})


class Contender:
    """A process that takes steps when told.

    Args:
        name: Of the contender.
        python: Interpreter.
        size: Of the step.
    """

    def __init__(self, name: str, python: str, size: Size) -> None:
        script = Path(__file__).with_name("sae_contenders.py")
        self.errors = ""
        self.process = subprocess.Popen(
            [python, str(script), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.ready = self._ask(size.told()) is not None

    def step(self) -> dict[str, float]:
        """Takes a step; returns its seconds (cpu, wall) and the peak in bytes so far."""
        answer = self._ask("step")
        if answer is None:
            raise SystemExit(f"a contender died:\n{self.errors}")
        return answer

    def close(self) -> None:
        """Ends the process."""
        self.process.communicate()

    def _ask(self, line: str) -> dict[str, float] | None:
        stdin, stdout = self.process.stdin, self.process.stdout
        if stdin is None or stdout is None:
            return None
        try:
            stdin.write(line + "\n")
            stdin.flush()
            answer = stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.errors = self.process.communicate()[1]
            return None
        found: dict[str, float] = json.loads(answer)
        return found


def started(size: Size, peers: str | None, names: Sequence[str]) -> dict[str, Contender]:
    """Returns the contenders that run; says of the others why not."""
    made = {}
    for name in names:
        python = peers if name in PEERS else sys.executable
        if python is None:
            continue
        contender = Contender(name, python, size)
        if contender.ready:
            made[name] = contender
        else:
            print(f"  {name} does not run: {contender.errors.strip().splitlines()[-1]}")
    return made


def medians(contenders: dict[str, Contender], rounds: int, clock: str) -> dict[str, float]:
    """Returns the median seconds of each, run in turn after two warm-ups."""
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 2):
        for name, contender in contenders.items():
            seconds = contender.step()[clock]
            if turn > 1:
                spent[name].append(seconds)
    return {name: statistics.median(times) for name, times in spent.items()}


def measure(size: Size, peers: str | None, names: Sequence[str], rounds: int) -> list[str]:
    """Prints the table of one setting; returns lines about the bounds."""
    title = f"d={size.d} {size.times}x batch={size.batch} threads={size.threads}"
    print(f"\n{title}")
    contenders = started(size, peers, names)
    times = medians(contenders, rounds, "cpu" if size.threads == 1 else "wall")
    for contender in contenders.values():
        contender.close()
    print(f"  {'':22s}{'ms':>10s}{'x plain':>10s}{'of limit':>10s}")
    for name in [*HERE, *PEERS]:
        if name not in times:
            if name in PEERS and peers is None and name in names:
                print(f"  {name:22s}{'not installed':>16s}")
            continue
        limit = times.get("gemm_bfloat16" if name.endswith("bfloat16") else "gemm")
        ratio = f"{times['plain'] / times[name]:10.2f}" if "plain" in times else ""
        share = f"{limit / times[name]:10.2f}" if limit and "gemm" not in name else ""
        print(f"  {name:22s}{1e3 * times[name]:10.1f}{ratio}{share}")
    return [
        _verdict(f"{title}: {fast} over {slow}", times[slow] / times[fast], bound)
        for fast, slow, bound in BOUNDS
        if fast in times and slow in times
    ]


def _verdict(what: str, ratio: float, bound: float) -> str:
    met = "met" if ratio >= MET * bound else "not met"
    return f"{what}: {ratio:.2f}x, asked {bound:g}x: {met}"


def check_gradients(size: Size) -> None:
    """Stops unless every gradient equals that of dense products and autograd."""
    x = synthetic(256, size.d, 7)
    sae, dense = SparseAutoencoder(size.d, size.latents, TopK(k=K)), DenseTopK(size.d, 1, K)
    names = ["W_enc", "b_enc", "W_dec", "b_dec"]
    for name in names:
        start = 0.01 * torch.randn_like(getattr(sae, name))
        with torch.no_grad():
            getattr(sae, name).add_(start)
        setattr(dense, name, torch.nn.Parameter(getattr(sae, name).detach().clone()))
    objective(sae, x).total.backward()
    dense.loss(x).backward()
    for name in names:
        ours, theirs = getattr(sae, name).grad, getattr(dense, name).grad
        error = float((ours - theirs).norm() / theirs.norm())
        print(f"  gradient of {name}: relative difference to dense autograd {error:.1e}")
        if not error <= GRADIENTS:
            raise SystemExit("the gradients differ")


def fvu_of_precisions(path: str | None, steps: int, size: Size) -> list[str]:
    """Returns a line about the share of variance left after as many steps in either precision."""
    if path is None:
        x = torch.cat([synthetic(size.batch, size.d, seed) for seed in range(64)])
    else:
        x = torch.from_numpy(np.load(path)).float()
    left = {}
    for precision in ("float32", "bfloat16"):
        sae = SparseAutoencoder(x.shape[1], x.shape[1] * size.times, TopK(k=K))
        training = SAETraining(steps=steps, batch=size.batch, precision=precision)
        left[precision] = 1 - sae.fit(x, training).score(x[-4 * size.batch :])
    change = left["bfloat16"] / left["float32"] - 1
    met = "met" if change <= FVU else "not met"
    source = "synthetic activations" if path is None else path
    return [
        f"FVU after {steps} steps on {source}: float32 {left['float32']:.4f}, bfloat16 "
        f"{left['bfloat16']:.4f} ({change:+.2%}), asked at most {FVU:+.0%}: {met}"
    ]


def peaks(size: Size, peers: str | None, names: Sequence[str]) -> list[str]:
    """Prints the peak of each contender, alone in its process; returns a line about the bound."""
    print(f"\npeak over the process after import, {size.times}x batch={size.batch}, MB")
    found = {}
    for name in names:
        for contender in started(size, peers, [name]).values():
            found[name] = [contender.step()["peak"] for _ in range(3)][-1]
            contender.close()
            print(f"  {name:22s}{found[name] / 2**20:10.0f}")
    if "saelens" not in found:
        return []
    lines = []
    for name in ("ours", "ours_bfloat16"):
        share = found[name] / found["saelens"]
        met = "met" if share <= MEMORY else "not met"
        lines.append(f"memory of {name}: {share:.2f} of SAELens, asked {MEMORY:g}: {met}")
    return lines


def options() -> argparse.Namespace:
    """Returns the options."""
    made = parser(__doc__)
    made.add_argument("--peers", help="interpreter that has the peers' packages")
    made.add_argument("--d", type=int, default=768)
    made.add_argument("--times", type=int, nargs="+", default=[8, 32])
    made.add_argument("--batch", type=int, nargs="+", default=[1024, 4096])
    made.add_argument("--only", nargs="+", choices=[*HERE, *PEERS], default=[*HERE, *PEERS])
    made.add_argument("--quick", action="store_true", help="8x, batch 1024, one thread, 3 rounds")
    made.add_argument("--memory", action="store_true", help="peaks too, of the largest setting")
    made.add_argument("--fvu", action="store_true", help="compare both precisions after training")
    made.add_argument("--fvu-steps", type=int, default=500)
    made.add_argument("--activations", help="a .npy file of rows for --fvu; else synthetic ones")
    made.add_argument("--no-steps", action="store_true", help="leave the timings out")
    chosen = made.parse_args()
    if chosen.quick:
        chosen.times, chosen.batch, chosen.threads, chosen.rounds = [8], [1024], [1], 3
    return chosen


def main() -> None:
    """Checks, measures, and says which bounds were met."""
    chosen = options()
    print(describe())
    check_gradients(Size(chosen.d, chosen.times[0], 256, 1))
    lines: list[str] = []
    if not chosen.no_steps:
        for threads in chosen.threads:
            for times in chosen.times:
                for batch in chosen.batch:
                    size = Size(chosen.d, times, batch, threads)
                    lines += measure(size, chosen.peers, chosen.only, chosen.rounds)
    torch.set_num_threads(max(chosen.threads))
    if chosen.fvu:
        size = Size(chosen.d, chosen.times[0], chosen.batch[0], max(chosen.threads))
        lines += fvu_of_precisions(chosen.activations, chosen.fvu_steps, size)
    if chosen.memory:
        size = Size(chosen.d, chosen.times[-1], chosen.batch[-1], max(chosen.threads))
        names = [name for name in chosen.only if "gemm" not in name]
        lines += peaks(size, chosen.peers, names)
    print()
    print("\n".join(lines))


if __name__ == "__main__":
    main()
