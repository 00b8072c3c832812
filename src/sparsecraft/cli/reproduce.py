"""`sparsecraft reproduce`: a paper's claim at small scale, judged in one word."""

from __future__ import annotations

import argparse
from pathlib import Path

from sparsecraft.cli.parser import Parser, positive

RESUME = "The same command goes on where it stopped: finished cells are kept in --out."


def parser() -> Parser:
    """Returns the parser of this verb."""
    made = Parser(
        prog="sparsecraft reproduce",
        description=(
            "Runs the central claim of a paper at small scale, over several seeds and beside its\n"
            "baselines, and prints the table and one line with a word: holds, does not hold,\n"
            "inconclusive. The word speaks of this scale, never of the paper.\n\n"
            "examples:\n"
            "  sparsecraft reproduce 13\n"
            "  sparsecraft reproduce 03 --budget smoke\n"
            "  sparsecraft reproduce all --out scoreboard"
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
    return made


def run(arguments: argparse.Namespace) -> int:
    """Runs the claim, which prints its own table and verdict, and returns 0."""
    from sparsecraft.lab.claims import reproduce

    reproduce(
        arguments.number,
        budget=arguments.budget,
        seeds=arguments.seeds,
        out=arguments.out,
        jobs=arguments.jobs,
    )
    return 0
