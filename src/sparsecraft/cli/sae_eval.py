"""`sparsecraft sae eval`: what a dictionary keeps of activations and of the model's behaviour."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sparsecraft.cli.parser import Parser, positive
from sparsecraft.cli.sae_model import add_trained_model, load_parts, load_trained, model_of, reread
from sparsecraft.cli.terminal import console, progress, say

BEHAVES = ("auto", "next-token", "similarity")


def parser() -> Parser:
    """Returns the parser of this command."""
    made = Parser(
        prog="sparsecraft sae eval",
        description=(
            "Measures a saved autoencoder on held-out text: how much of the activations' variance\n"
            "it leaves unexplained (FVU; predicting the mean leaves 1), how many latents are\n"
            "active, how many are dead, and how much of the model's behaviour is left when the\n"
            "activations are replaced by the reconstruction: the loss recovered for language\n"
            "models, the divergence of similarities for encoders and masked language models,\n"
            "beside zero and mean ablation of the same place.\n\n"
            "examples:\n"
            "  sparsecraft sae eval my-sae --model my-encoder --text other.txt\n"
            "  sparsecraft sae eval my-sae --text other.txt --rows 100000 --json figures.json\n"
            "  sparsecraft sae eval my-sae --text other.txt --behaves similarity --contexts 512"
        ),
    )
    add_trained_model(made)
    made.add_argument(
        "--behaves",
        choices=BEHAVES,
        default="auto",
        help="what the model's behaviour is; auto: the next token, but similarities of texts where "
        "it gives no predictions, or predictions that see the tokens behind them",
    )
    made.add_argument(
        "--contexts", type=positive, default=128, metavar="N", help="on which behaviour is measured"
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    return made


def run(arguments: argparse.Namespace) -> int:
    """Measures, prints the table, and returns 0."""
    from rich.table import Table

    from sparsecraft.domains.interpretability import evaluate
    from sparsecraft.model.files import write_atomic

    sae = load_trained(arguments)
    model, tokenizer = load_parts(model_of(sae, arguments), arguments)
    store = reread(sae, model, tokenizer, arguments)
    with progress("evaluation") as tell:
        found = evaluate(
            sae,
            store,
            model,
            behaves=arguments.behaves.replace("-", " "),
            contexts=arguments.contexts,
            progress=tell,
        )
    table = Table("measure", "value", "what it says")
    for row in found.rows():
        table.add_row(*row)
    console().print(table)
    for note in found.notes:
        say(f"note: {note}")
    if arguments.json is not None:
        write_atomic(arguments.json, json.dumps(found.to_json(), indent=1) + "\n")
    return 0
