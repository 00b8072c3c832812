"""`sparsecraft sae convert`: a saved autoencoder from one library's format to another's."""

from __future__ import annotations

import argparse
from pathlib import Path

from sparsecraft.cli.parser import Parser
from sparsecraft.cli.terminal import say
from sparsecraft.core.errors import InvalidValue

_DTYPES = ("as-saved", "float32", "bfloat16", "float16")


def parser() -> Parser:
    """Returns the parser of this command."""
    made = Parser(
        prog="sparsecraft sae convert",
        description=(
            "Reads a saved autoencoder and writes it in another format, for which outputs are the\n"
            "same to rounding. What a format has no words for is refused, with what to do; what\n"
            "is folded into the weights or left out is said.\n\n"
            "reads:   sparsecraft, saelens, sparsify, dictionary_learning, gemma_scope,\n"
            "         llama_scope, openai\n"
            "writes:  sparsecraft, saelens, sparsify, dictionary_learning\n\n"
            "examples:\n"
            "  sparsecraft sae convert my-sae --to saelens --out for-saelens\n"
            "  sparsecraft sae convert from-saelens --out my-sae\n"
            "  sparsecraft sae convert signed-sae --to sparsify --rectify --out for-sparsify\n"
            "  sparsecraft sae convert google/gemma-scope-2b-pt-res \\\n"
            "      --subfolder layer_20/width_16k/average_l0_71 --out gemma-sae\n"
            "  sparsecraft sae convert old-sae --activation-scale 0.37 --out my-sae"
        ),
    )
    made.add_argument("source", metavar="IN", help="directory or file, or hub id org/name")
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory to write")
    made.add_argument("--to", default="sparsecraft", metavar="FORMAT", help="format to write")
    made.add_argument(
        "--from", dest="origin", metavar="FORMAT", help="format to read (default: as recognised)"
    )
    made.add_argument("--subfolder", metavar="FOLDER", help="folder in it to read")
    made.add_argument("--dtype", choices=_DTYPES, default="as-saved", help="of the weights written")
    made.add_argument(
        "--rectify",
        action="store_true",
        help="write signed codes as two latents each, for formats that cut off negative ones",
    )
    made.add_argument(
        "--activation-scale",
        type=float,
        metavar="S",
        help="what activations were multiplied by in training, for SAELens files without it",
    )
    made.add_argument("--overwrite", action="store_true", help="replace --out if it exists")
    return made


def run(arguments: argparse.Namespace) -> int:
    """Converts, says what was done, and returns 0."""
    import torch

    from sparsecraft.model.files import refuse_existing
    from sparsecraft.model.sae import SparseAutoencoder, formats
    from sparsecraft.model.sae.rectified import rectified

    formats.writer(arguments.to)
    refuse_existing(arguments.out, overwrite=arguments.overwrite)
    dtype = None if arguments.dtype == "as-saved" else getattr(torch, arguments.dtype)
    sae = SparseAutoencoder.from_pretrained(
        arguments.source,
        arguments.subfolder or "",
        format=arguments.origin,
        dtype=dtype,
        activation_scale=arguments.activation_scale,
    )
    if arguments.rectify and not sae.activation.signed:
        raise InvalidValue(
            f"--rectify is for signed codes, and those of {type(sae.activation).__name__} are not: "
            "leave it out"
        )
    if arguments.rectify:
        sae = rectified(sae)
    notes = sae.save_pretrained(arguments.out, format=arguments.to, overwrite=arguments.overwrite)
    say(
        f"{type(sae.activation).__name__}, {sae.d_sae:,} latents of {sae.d_in} entries, at "
        f"{sae.info.get('hook') or 'a place that the file does not say'}"
    )
    for note in notes:
        say(f"note: {note}")
    say(f"written to {arguments.out} in the format {arguments.to}")
    return 0
