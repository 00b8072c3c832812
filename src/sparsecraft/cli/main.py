"""The command `sparsecraft`: finds the verb, runs it, turns errors into one line each.

The verbs' files are imported when their verb is called, so that `sparsecraft --help` answers
without loading torch.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from sparsecraft import __version__
from sparsecraft.cli.parser import Parser
from sparsecraft.core.errors import SparsityError, UnknownName

VERBS = {
    "compare": "which method, how sparse, and what you really gain: one HTML report",
    "prune": "prune one model directory with one method",
    "gate": "drop activations at inference, token by token, and save the gates with the model",
    "train": "make a task's model sparse while it trains, beside its controls",
    "speed": "whether a saved model runs faster than dense here, and what it loses",
    "sae": "sparse autoencoders: train, eval, convert, browse",
    "methods": "the catalog: every method, its paper, its options",
    "reproduce": "run a paper's claim at small scale and judge it",
}
DEBUG = "SPARSECRAFT_DEBUG"
USER_ERROR, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of the command line.

    Args:
        argv: The arguments after the program's name; those of the process by default.

    Returns:
        0, or 2 for something the user can mend, or 130 for an interruption.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    resume = ""
    try:
        if not arguments or arguments[0].startswith("-"):
            _overview().parse_args(arguments or ["--help"])
            return 0
        verb, *rest = arguments
        if verb not in VERBS:
            raise UnknownName("command", verb, VERBS)
        module = importlib.import_module(f"sparsecraft.cli.{verb}")
        resume = module.RESUME
        return module.run(module.parser().parse_args(rest))
    except SystemExit as stop:  # argparse's --help and --version
        return int(stop.code or 0)
    except SparsityError as error:
        if os.environ.get(DEBUG):
            raise
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return USER_ERROR
    except KeyboardInterrupt:
        sys.stderr.write(f"\ninterrupted. {resume}\n")
        return INTERRUPTED


def _overview() -> Parser:
    verbs = "\n".join(f"  {name:<11}{line}" for name, line in VERBS.items())
    parser = Parser(
        prog="sparsecraft",
        usage="sparsecraft [--help] [--version] COMMAND ...",
        description=(
            "Makes neural networks sparse and measures what it brings: quality, bytes, seconds.\n\n"
            f"commands:\n{verbs}\n\n"
            "examples:\n"
            "  sparsecraft compare                       the demo: a real encoder, a few minutes\n"
            "  sparsecraft compare my-model --text notes.txt --method wanda,sparsegpt\n"
            "  sparsecraft prune my-model --method wanda --pattern 2:4 --calibration notes.txt "
            "--out sparse\n"
            "  sparsecraft gate my-llama --method wina --sparsity 0.65 --calibration notes.txt "
            "--out gated\n"
            "  sparsecraft train digits-mlp --method rigl --sparsity 0.9\n"
            "  sparsecraft sae train my-encoder --at encoder.layer.3.output --text notes.txt "
            "--out my-sae\n"
            "  sparsecraft methods wanda\n\n"
            "`sparsecraft COMMAND --help` explains a command. Exit codes: 0 done, 2 an error that "
            f"you can mend,\n130 interrupted. {DEBUG}=1 shows the traceback of an error."
        ),
    )
    parser.add_argument("--version", action="version", version=f"sparsecraft {__version__}")
    return parser
