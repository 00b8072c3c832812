"""`sparsecraft reproduce`: a paper's claim at small scale, judged in one word."""

from __future__ import annotations

import argparse
from pathlib import Path

from sparsecraft.cli.parser import Parser, positive
from sparsecraft.core.errors import SparsityError

FAILED = "failed"
RESUME = "The same command goes on where it stopped: finished cells are kept in --out."


def parser() -> Parser:
    """Returns the parser of this verb."""
    made = Parser(
        prog="sparsecraft reproduce",
        description=(
            "Runs the central claim of a paper at small scale, over several seeds and beside its\n"
            "baselines, and prints the table and one line with a word: holds, does not hold,\n"
            "inconclusive. The word speaks of this scale, never of the paper. With `all`, the\n"
            "cells of every claim share one pool; the scoreboard is written after each claim, and\n"
            "one that fails stands on it with its reason and takes no other down.\n\n"
            "examples:\n"
            "  sparsecraft reproduce 13\n"
            "  sparsecraft reproduce 03 --budget smoke\n"
            "  sparsecraft reproduce all --jobs 8 --out scoreboard\n"
            "  sparsecraft reproduce all --jobs 64 --backend ray      on the cluster of RAY_ADDRESS"
        ),
    )
    made.add_argument("number", metavar="NUMBER", help='number of the paper, or "all"')
    made.add_argument(
        "--budget",
        default="small",
        help="smoke (seconds, no verdict), small (minutes) or full (the whole grid, resumable)",
    )
    made.add_argument("--seeds", type=positive, metavar="N", help="how many seeds; the claim's own")
    made.add_argument(
        "--out", type=Path, default="reproductions", metavar="DIR", help="where the results go"
    )
    made.add_argument("--jobs", type=positive, default=1, help="cells at once, each on one core")
    made.add_argument(
        "--backend",
        default="loky",
        help="loky: processes on this machine; ray: a Ray cluster (extra `cluster`)",
    )
    return made


def run(arguments: argparse.Namespace) -> int:
    """Runs the claim, which prints its own table and verdict, and returns 0.

    Raises:
        SparsityError: If claims failed; the scoreboard says why.
    """
    from sparsecraft.lab.claims import reproduce

    found = reproduce(
        arguments.number,
        budget=arguments.budget,
        seeds=arguments.seeds,
        out=arguments.out,
        jobs=arguments.jobs,
        backend=arguments.backend,
    )
    failed = [
        f"{each['number']:02d}" for each in found.get("claims", ()) if each["verdict"] == FAILED
    ]
    if failed:
        raise SparsityError(
            f"{len(failed)} of {len(found['claims'])} claims failed: {', '.join(failed)}. "
            f"{arguments.out / 'scoreboard.md'} says why; the same command tries them again."
        )
    return 0
