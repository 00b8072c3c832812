"""The options of `sae train`, and the settings that they give."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsecraft.cli.parser import Parser, add_settings, fraction, positive, whole_numbers
from sparsecraft.cli.sae_model import add_text
from sparsecraft.core.errors import InvalidValue

if TYPE_CHECKING:
    from sparsecraft.core.kinds import Activation
    from sparsecraft.model.sae.training_settings import SAETraining

STEPS, BATCH, HELD_OUT, BUFFER = 5000, 4096, 0.1, 2**18


def add_places(parser: Parser) -> None:
    """Adds the model, the places whose activations are taken, and the text."""
    parser.add_argument("model", metavar="MODEL", help="model directory, or hub id")
    parser.add_argument(
        "--at",
        metavar="HOOK",
        action="append",
        default=[],
        help="a module, its name ending in .input for what it reads; or a TransformerLens name. "
        "Repeatable: one dictionary each, all from one pass over the text, in folders of --out",
    )
    parser.add_argument(
        "--to",
        metavar="HOOK",
        help="a second place, which the dictionary reconstructs from the first: a transcoder",
    )
    add_text(parser)
    parser.add_argument(
        "--live",
        action="store_true",
        help="store no activations: run the model as the training reads, for texts of which they "
        "would fill the disk. The first ones of the text are held out",
    )
    parser.add_argument(
        "--buffer",
        type=positive,
        default=BUFFER,
        metavar="ROWS",
        help="activations that --live holds and mixes",
    )


def add_dictionary(parser: Parser) -> None:
    """Adds the options that say what is trained."""
    parser.add_argument(
        "--activation", metavar="NAME", default="topk_sae", help="how codes are made sparse"
    )
    add_settings(parser, "activation")
    parser.add_argument(
        "--expansion", type=positive, default=16, metavar="N", help="latents for each entry"
    )
    parser.add_argument("--latents", type=positive, metavar="N", help="instead of --expansion")
    parser.add_argument(
        "--prefixes",
        type=whole_numbers,
        metavar="N,...",
        help="nested dictionaries (Matryoshka): the first N latents must reconstruct alone, too; "
        "the whole dictionary always does",
    )
    parser.add_argument(
        "--skip", action="store_true", help="a transcoder also learns a linear map of its input"
    )


def add_training(parser: Parser) -> None:
    """Adds the options that say how it is trained."""
    parser.add_argument(
        "--steps", type=positive, default=STEPS, metavar="N", help="of the training"
    )
    parser.add_argument("--batch", type=positive, default=BATCH, metavar="N", help="rows in a step")
    parser.add_argument(
        "--micro-batch", type=positive, metavar="N", help="rows worked on at once, to save memory"
    )
    parser.add_argument("--learning-rate", type=float, metavar="X", help="at its peak")
    parser.add_argument(
        "--resample-every",
        type=positive,
        metavar="STEPS",
        help="let dead latents start anew as directions of badly reconstructed rows, in the first "
        "half of the training (default: never; selections have an auxiliary loss instead)",
    )
    parser.add_argument(
        "--held-out",
        type=fraction,
        default=HELD_OUT,
        metavar="SHARE",
        help="of the contexts, on which the report is measured; 0: on training rows",
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the encoder's product in the forward pass; all else, and what a selection keeps, "
        "is float32 either way",
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the autoencoder goes")
    parser.add_argument("--overwrite", action="store_true", help="replace --out if it exists")


def activation_of(arguments: argparse.Namespace) -> Activation:
    """Returns the activation of the arguments.

    Raises:
        InvalidValue: If the name is of something else, or an option is not allowed.
    """
    from sparsecraft.core import catalog
    from sparsecraft.core.kinds import Activation

    info = catalog.get(arguments.activation)
    if not issubclass(info.cls, Activation):
        raise InvalidValue(
            f"{info.name} is of the kind {info.kind}: it makes no codes. Those that do: "
            + ", ".join(
                name for name in catalog.names() if issubclass(catalog.get(name).cls, Activation)
            )
        )
    return catalog.build(arguments.activation, **dict(arguments.option))  # type: ignore[return-value]


def form_of(activation: Activation, arguments: argparse.Namespace, latents: int) -> dict[str, Any]:
    """Returns the form of the autoencoder: what the activation is defined for, and what was asked.

    Args:
        activation: How codes are made sparse.
        arguments: Of the command.
        latents: Of the dictionary, with which its nested ones end.
    """
    prefixes = arguments.prefixes or ()
    if prefixes and prefixes[-1] < latents:
        prefixes = (*prefixes, latents)
    own = {"tied": True, "row_norm": "unit"} if activation.moves_bias else {}
    return {**own, "skip": arguments.skip, "prefixes": prefixes, "seed": arguments.seed}


def training_of(arguments: argparse.Namespace) -> SAETraining:
    """Returns the settings of the training."""
    from sparsecraft.model.sae.resampling import Resampling
    from sparsecraft.model.sae.training_settings import SAETraining

    every = arguments.resample_every
    return SAETraining(
        steps=arguments.steps,
        batch=arguments.batch,
        micro_batch=arguments.micro_batch,
        learning_rate=arguments.learning_rate,
        resample=None if every is None else Resampling(every=every),
        held_out=arguments.held_out,
        precision=arguments.precision,
        seed=arguments.seed,
    )
