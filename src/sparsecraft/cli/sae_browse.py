"""`sparsecraft sae browse`: one HTML page with the latents of an autoencoder."""

from __future__ import annotations

import argparse
from pathlib import Path

from sparsecraft.cli.parser import Parser, positive, whole_numbers
from sparsecraft.cli.sae_model import add_trained_model, load_parts, load_trained, model_of, reread
from sparsecraft.cli.terminal import progress, say
from sparsecraft.core.errors import InvalidValue


def parser() -> Parser:
    """Returns the parser of this command."""
    made = Parser(
        prog="sparsecraft sae browse",
        description=(
            "Writes one HTML file that opens anywhere: every latent with the contexts in which it\n"
            "is strongest (for signed codes both poles), random ones beside them, how often it\n"
            "fires, its most similar directions, and, where a language model's residual stream is\n"
            "read, which tokens it makes likelier. Searchable by number and by text. Use a text\n"
            "that it was not trained on.\n\n"
            "examples:\n"
            "  sparsecraft sae browse my-sae --model my-encoder --text other.txt --out latents.html"
            "\n"
            "  sparsecraft sae browse my-sae --model my-llama --text other.txt --latents 5,77,1234"
        ),
    )
    add_trained_model(made)
    made.add_argument(
        "--out", type=Path, default=Path("latents.html"), metavar="FILE", help="the page"
    )
    made.add_argument(
        "--latents",
        type=whole_numbers,
        metavar="N,...",
        help="latents with examples (default: alive)",
    )
    made.add_argument(
        "--most-latents",
        type=positive,
        default=2000,
        metavar="N",
        help="with examples, chosen at random, where more are alive",
    )
    made.add_argument(
        "--no-effects", action="store_true", help="leave out which tokens a latent makes likelier"
    )
    return made


def run(arguments: argparse.Namespace) -> int:
    """Writes the page, says where it is, and returns 0."""
    from sparsecraft.domains.interpretability.browse import browse

    if not arguments.out.resolve().parent.is_dir():
        raise InvalidValue(f"{arguments.out} cannot be written: there is no such folder")
    sae = load_trained(arguments)
    model, tokenizer = load_parts(model_of(sae, arguments), arguments)
    store = reread(sae, model, tokenizer, arguments)
    with progress("page") as tell:
        browse(
            sae,
            store,
            arguments.out,
            tokenizer=tokenizer,
            model=None if arguments.no_effects else model,
            latents=arguments.latents,
            most_latents=arguments.most_latents,
            progress=tell,
            remark=lambda text: say(f"note: {text}"),
        )
    say(f"written to {arguments.out}; open it in a browser")
    return 0
