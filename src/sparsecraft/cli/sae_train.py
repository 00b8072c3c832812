"""`sparsecraft sae train`: from a model and a text to a dictionary of its activations."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sparsecraft.cli.parser import Parser
from sparsecraft.cli.sae_model import harvest, harvest_live, load_parts, placed
from sparsecraft.cli.sae_train_options import (
    activation_of,
    add_dictionary,
    add_places,
    add_training,
    form_of,
    training_of,
)
from sparsecraft.cli.terminal import progress, say
from sparsecraft.core.errors import InvalidValue

if TYPE_CHECKING:
    from sparsecraft.model.activation_store import ActivationStore
    from sparsecraft.model.sae import SparseAutoencoder


def parser() -> Parser:
    """Returns the parser of this command."""
    made = Parser(
        prog="sparsecraft sae train",
        description=(
            "Reads a text to a model, keeps the activations of a place on disk, and trains a\n"
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
            "  sparsecraft sae train my-llama --at model.layers.2.mlp.input \\\n"
            "      --to model.layers.2.mlp --skip --text notes.txt --out my-transcoder\n"
            "  sparsecraft sae train my-llama --at model.layers.1 --at model.layers.2 \\\n"
            "      --latents 4096 --prefixes 256,1024 --text notes.txt --out my-saes\n"
            "  sparsecraft sae train my-llama --at model.layers.2 --text notes.txt \\\n"
            "      --activation relu_sae --resample-every 1000 --device cuda --out my-sae\n"
            "  sparsecraft sae train my-llama --at model.layers.2 --text huge.txt --live \\\n"
            "      --out my-sae\n"
            "  sparsecraft methods --of codes"
        ),
    )
    add_places(made)
    add_dictionary(made)
    add_training(made)
    return made


def run(arguments: argparse.Namespace) -> int:
    """Harvests, trains, saves, says what came out, and returns 0."""
    from sparsecraft.model.files import refuse_existing

    for option, value in (("--out DIR", arguments.out), ("--at HOOK", arguments.at)):
        if not value:
            raise InvalidValue(f"{option} is needed; `sparsecraft sae train --help` has examples")
    if arguments.skip and arguments.to is None:
        raise InvalidValue("--skip is for transcoders: give --to HOOK, or leave it out")
    refuse_existing(arguments.out, overwrite=arguments.overwrite)
    activation, training = activation_of(arguments), training_of(arguments)
    model, tokenizer = load_parts(arguments.model, arguments)
    work = arguments.out.with_name(arguments.out.name + ".work")
    options = {"gradients": activation.needs_gradient, "to": arguments.to}
    if arguments.live:
        stores = harvest_live(model, tokenizer, arguments.at, arguments, **options)
    else:
        kept = work / "activations"
        stores = harvest(model, tokenizer, arguments.at, arguments, path=kept, **options)
    saes = {at: _untrained(store, arguments) for at, store in stores.items()}
    for at, sae in saes.items():
        within = Path(at) if len(stores) > 1 else Path()
        with progress(f"training {at}" if len(stores) > 1 else "training") as tell:
            sae.fit(stores[at], training, directory=work / "training" / within, progress=tell)
        sae.save_pretrained(arguments.out / within, overwrite=arguments.overwrite)
        _say(sae, arguments.out / within)
    stays = "the training's checkpoint stays" if arguments.live else "the activations stay"
    say(f"{stays} in {work} for other trainings: remove it when you are done with them")
    return 0


def _untrained(store: ActivationStore, arguments: argparse.Namespace) -> SparseAutoencoder:
    from sparsecraft.model.sae import SparseAutoencoder

    activation = activation_of(arguments)
    latents = arguments.latents or arguments.expansion * store.d_in
    form = form_of(activation, arguments, latents)
    form["transcoder"] = store.has_target
    sae = SparseAutoencoder(store.d_in, latents, activation, d_out=store.d_out, **form)
    return placed(sae, arguments.device)


def _say(sae: SparseAutoencoder, path: Path) -> None:
    say(str(sae.report))
    for note in sae.report.notes if sae.report else ():
        say(f"note: {note}")
    say(f"written to {path}")
