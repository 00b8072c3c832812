"""`sparsecraft sae`: train, evaluate, convert and browse sparse autoencoders."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from sparsecraft.cli.parser import Parser
from sparsecraft.core.errors import UnknownName

RESUME = "The same command goes on where it stopped."
COMMANDS = {
    "train": "harvest a model's activations and train a dictionary on them",
    "eval": "what a dictionary keeps of the activations, and of the model's behaviour",
    "convert": "between sparsecraft, SAELens, sparsify, dictionary_learning and other files",
    "browse": "one HTML page with the latents: contexts, densities, neighbours, logits",
}


class _Commands(Parser):
    """Reads `sae COMMAND ...` with the parser of the command, imported when it is called."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Returns the arguments of a command, and in `module` where its `run` is.

        Raises:
            UnknownName: For a command that does not exist.
        """
        given = list(args or [])
        if not given or given[0].startswith("-"):
            return super().parse_args(given or ["--help"], namespace)
        command, *rest = given
        if command not in COMMANDS:
            raise UnknownName("sae command", command, COMMANDS)
        module = importlib.import_module(f"sparsecraft.cli.sae_{command}")
        found = module.parser().parse_args(rest, namespace)
        found.module = module
        return found


def parser() -> Parser:
    """Returns the parser of this verb."""
    listed = "\n".join(f"  {name:<11}{line}" for name, line in COMMANDS.items())
    return _Commands(
        prog="sparsecraft sae",
        usage="sparsecraft sae [--help] COMMAND ...",
        description=(
            "Sparse autoencoders: directions in a model's activations, of which few are active at\n"
            f"a time.\n\ncommands:\n{listed}\n\n"
            "examples, from a model to a page of its latents:\n"
            "  sparsecraft sae train my-encoder --at encoder.layer.3.output --text notes.txt "
            "--out my-sae\n"
            "  sparsecraft sae eval my-sae --model my-encoder --text other.txt\n"
            "  sparsecraft sae browse my-sae --model my-encoder --text other.txt "
            "--out latents.html\n"
            "  sparsecraft sae convert my-sae --to saelens --out for-saelens\n\n"
            "`sparsecraft sae COMMAND --help` explains a command."
        ),
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the command that was named."""
    return arguments.module.run(arguments)
