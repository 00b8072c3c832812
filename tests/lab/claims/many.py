"""Synthetic claims together, killed after a number of cells: `many.py OUT JOBS N [N ...]`."""

import dataclasses
import os
import signal
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import synthetic

from sparsecraft.lab.claims.runner import run_all
from sparsecraft.lab.claims.together import Standing

NUMBERS = (97, 98, 99)


def load(number):
    """Claim 97 asks twice: for its later seeds only when it has seen the first."""
    run = in_two_rounds if number == 97 else synthetic.run
    return dataclasses.replace(synthetic.claim(), number=number, run=run)


def in_two_rounds(budget, seeds, cells):
    return synthetic.run(budget, seeds[:1], cells) + synthetic.run(budget, seeds[1:], cells)


def reproduce_all(out, jobs=1):
    return run_all("small", None, Path(out), jobs, False, numbers=NUMBERS, load=load)


def kill_after(cells):
    """Makes this process kill itself as soon as so many cells are kept."""
    take, kept = Standing.take, [0]

    def taking(self, cell, answer):
        take(self, cell, answer)
        kept[0] += 1
        if kept[0] == cells:
            os.kill(os.getpid(), signal.SIGKILL)

    Standing.take = taking


def killed(out, jobs, cells):
    """Returns the exit status of a child that is killed after so many cells."""
    child = os.fork()
    if child == 0:
        # Workers outlive a killed parent for some seconds and would keep its output open.
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1), os.dup2(quiet, 2)
        kill_after(cells)
        reproduce_all(Path(out) / str(cells), jobs)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    # A process of its own, and one thread, so that it may fork.
    torch.set_num_threads(1)
    out, jobs, *counts = sys.argv[1:]
    sys.stdout.write(" ".join(str(killed(out, int(jobs), int(n))) for n in counts))
