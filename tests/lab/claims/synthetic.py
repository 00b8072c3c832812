"""A claim whose cells are random numbers around known means; it kills itself if it is told to."""

import os
import signal
import sys
from pathlib import Path

import torch

from sparsecraft.core.catalog import Paper
from sparsecraft.core.seeds import generator
from sparsecraft.lab.claims import run_claim
from sparsecraft.lab.claims.cells import Cell
from sparsecraft.lab.claims.claim import Claim, Contrast, FullScale
from sparsecraft.lab.evidence.verdict import StatedDifference

KILL = {"after": None, "measured": 0}


def measure(cell):
    if KILL["measured"] == KILL["after"]:
        os.kill(os.getpid(), signal.SIGKILL)
    KILL["measured"] += 1
    noise = torch.randn(1, generator=generator(cell.seed, cell.arm), dtype=torch.float64)
    return {"accuracy": cell.settings["mean"] + 0.001 * noise.item()}


def run(budget, seeds, cells):
    means = {"ours, width=4": 0.8, "rival, width=4": 0.7, "dense": 0.9}
    return cells.rows(
        measure, [Cell(arm, seed, {"mean": mean}) for seed in seeds for arm, mean in means.items()]
    )


def claim(version=1, better="ours, width=4", worse="rival, width=4"):
    return Claim(
        number=99,
        title="Ours beats the rival",
        paper=Paper("Nobody", 2026),
        version=version,
        stated=(
            Contrast(
                stated=StatedDifference(
                    text="better", unit="accuracy", direction="greater", smallest_effect=0.05
                ),
                metric="accuracy",
                terms={better: 1.0, worse: -1.0},
            ),
        ),
        scale="3 numbers",
        full_scale=FullScale(
            model="none", data="none", recipe="none", methods=(), hyperparameters={}
        ),
        seeds={"smoke": 1, "small": 3, "full": 4},
        run=run,
        curve="accuracy",
        tuning="none",
    )


def killed_at(measured, out):
    """Runs the claim in a child process, killed at this measurement; returns its exit status."""
    child = os.fork()
    if child == 0:
        KILL["after"] = measured
        run_claim(claim(), "small", None, Path(out) / str(measured), progress=False)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    # A process of its own, and one thread, so that it may fork.
    torch.set_num_threads(1)
    sys.stdout.write(" ".join(str(killed_at(n, sys.argv[1])) for n in range(9)))
