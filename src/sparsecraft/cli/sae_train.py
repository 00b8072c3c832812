"""`sparsecraft sae train`: from a model and a text to a dictionary of its activations."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsecraft.cli.parser import Parser, assignment, positive
from sparsecraft.cli.sae_model import add_text, harvest, load_parts
from sparsecraft.cli.terminal import progress, say
from sparsecraft.core.errors import InvalidValue

if TYPE_CHECKING:
    from sparsecraft.core.kinds import Activation
    from sparsecraft.model.sae import SparseAutoencoder

STEPS, BATCH = 5000, 4096


def parser() -> Parser:
    """Returns the parser of this command."""
    made = Parser(
        prog="sparsecraft sae train",
        description=(
            "Reads a text to a model, keeps the activations of one place on disk, and trains a\n"
            "sparse autoencoder on them. A tenth of the contexts is held out, and what is left\n"
            "unexplained there is what you are told. A run that was stopped goes on where it was.\n"
            "The directory that comes out can be browsed, evaluated, and converted for SAELens.\n\n"
            "examples:\n"
            "  sparsecraft sae train my-encoder --at encoder.layer.3.output --text notes.txt "
            "--out my-sae\n"
            "  sparsecraft sae train my-llama --at blocks.2.hook_resid_post --text notes.txt \\\n"
            "      --activation abstopk --option k=32 --expansion 8 --out my-sae\n"
            "  sparsecraft sae train my-llama --at model.layers.2 --text notes.txt \\\n"
            "      --activation gradient_topk --option k=32 --out my-sae\n"
            "  sparsecraft methods --of codes"
        ),
    )
    made.add_argument("model", metavar="MODEL", help="model directory, or hub id")
    made.add_argument(
        "--at",
        metavar="HOOK",
        help="a module, its name ending in .input for what it reads; or a TransformerLens name",
    )
    add_text(made)
    made.add_argument(
        "--activation", metavar="NAME", default="topk_sae", help="how codes are made sparse"
    )
    made.add_argument(
        "--option",
        type=assignment,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the activation, repeatable; `sparsecraft methods NAME` lists them",
    )
    made.add_argument(
        "--expansion", type=positive, default=16, metavar="N", help="latents for each entry"
    )
    made.add_argument("--latents", type=positive, metavar="N", help="instead of --expansion")
    made.add_argument("--steps", type=positive, default=STEPS, metavar="N", help="of the training")
    made.add_argument("--batch", type=positive, default=BATCH, metavar="N", help="rows in a step")
    made.add_argument("--learning-rate", type=float, metavar="X", help="at its peak")
    made.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the encoder's product; what is selected is computed in float32 either way",
    )
    made.add_argument("--seed", type=int, default=0, help="of everything random")
    made.add_argument("--out", type=Path, metavar="DIR", help="where the autoencoder goes")
    made.add_argument("--overwrite", action="store_true", help="replace --out if it exists")
    return made


def run(arguments: argparse.Namespace) -> int:
    """Harvests, trains, saves, says what came out, and returns 0."""
    from sparsecraft.model.files import refuse_existing
    from sparsecraft.model.sae import SparseAutoencoder

    for option, value in (("--out DIR", arguments.out), ("--at HOOK", arguments.at)):
        if value is None:
            raise InvalidValue(f"{option} is needed; `sparsecraft sae train --help` has examples")
    refuse_existing(arguments.out, overwrite=arguments.overwrite)
    activation = _activation(arguments)
    model, tokenizer = load_parts(arguments.model, arguments.dtype)
    work = arguments.out.with_name(arguments.out.name + ".work")
    store = harvest(
        model,
        tokenizer,
        arguments.at,
        arguments,
        path=work / "activations",
        gradients=activation.needs_gradient,
    )
    latents = arguments.latents or arguments.expansion * store.d_in
    sae = SparseAutoencoder(
        store.d_in, latents, activation, seed=arguments.seed, **_form(activation)
    )
    with progress("training") as tell:
        sae.fit(store, _training(arguments), directory=work / "training", progress=tell)
    sae.save_pretrained(arguments.out, overwrite=arguments.overwrite)
    _say(sae, arguments, work)
    return 0


def _activation(arguments: argparse.Namespace) -> Activation:
    from sparsecraft.core import catalog
    from sparsecraft.core.kinds import Activation

    options = dict(arguments.option)
    info = catalog.get(arguments.activation)
    if not issubclass(info.cls, Activation):
        raise InvalidValue(
            f"{info.name} is of the kind {info.kind}: it makes no codes. Those that do: "
            + ", ".join(
                name for name in catalog.names() if issubclass(catalog.get(name).cls, Activation)
            )
        )
    return catalog.build(arguments.activation, **options)  # type: ignore[return-value]


def _form(activation: Activation) -> dict[str, Any]:
    """Returns the form of the autoencoder that an activation is defined for."""
    return {"tied": True, "row_norm": "unit"} if activation.moves_bias else {}


def _training(arguments: argparse.Namespace) -> Any:
    from sparsecraft.model.sae.training_settings import SAETraining

    return SAETraining(
        steps=arguments.steps,
        batch=arguments.batch,
        learning_rate=arguments.learning_rate,
        precision=arguments.precision,
        seed=arguments.seed,
    )


def _say(sae: SparseAutoencoder, arguments: argparse.Namespace, work: Path) -> None:
    say(str(sae.report))
    for note in sae.report.notes if sae.report else ():
        say(f"note: {note}")
    say(
        f"written to {arguments.out}; the activations stay in {work} for other dictionaries: "
        "remove it when you are done"
    )
