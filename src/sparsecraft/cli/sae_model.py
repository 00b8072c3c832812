"""What the `sae` commands have in common: the model, its tokenizer, its activations on a text."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsecraft.cli.model_directory import DTYPES, weights_dtype
from sparsecraft.cli.parser import Parser, positive
from sparsecraft.cli.terminal import progress, say
from sparsecraft.core.errors import InvalidValue

if TYPE_CHECKING:
    from torch import nn

    from sparsecraft.model.activation_store import ActivationStore
    from sparsecraft.model.sae import SparseAutoencoder


def add_text(parser: Parser) -> None:
    """Adds the options that say on which text the model's activations are taken."""
    parser.add_argument("--text", type=Path, metavar="FILE", help="UTF-8 text that the model reads")
    parser.add_argument(
        "--context", type=positive, default=128, metavar="TOKENS", help="tokens read in a row"
    )
    parser.add_argument(
        "--rows", type=positive, metavar="N", help="activations at most (default: all of the text)"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="of the model's weights; auto: as saved"
    )


def add_trained_model(parser: Parser) -> None:
    """Adds the model that a saved autoencoder belongs to, and its text."""
    parser.add_argument("sae", metavar="SAE", help="autoencoder directory, of any format we read")
    parser.add_argument("--model", metavar="MODEL", help="directory or hub id of the model")
    parser.add_argument(
        "--at", metavar="HOOK", help="where its activations are (default: as the file says)"
    )
    add_text(parser)


def load_parts(source: str, dtype: str) -> tuple[nn.Module, Any]:
    """Returns the model of a directory or hub id, and its tokenizer.

    Raises:
        InvalidValue: If there is no tokenizer.
    """
    from sparsecraft.lab.tasks.pretrained import load_tokenizer
    from sparsecraft.model.checkpoints import load_pretrained

    model = load_pretrained(source, dtype=weights_dtype(source, dtype))
    try:
        return model, load_tokenizer(source)
    except (OSError, ValueError) as error:
        raise InvalidValue(
            f"{source} has no tokenizer, so no text can be read to it. Put tokenizer.json there, "
            "or make the store from Python with your own batches."
        ) from error


def harvest(
    model: nn.Module, tokenizer: Any, at: str, arguments: argparse.Namespace, **options: Any
) -> ActivationStore:
    """Returns the activations of the model on the text of the arguments, with a progress bar."""
    from sparsecraft.model.activation_store import ActivationStore
    from sparsecraft.model.calibration_text import read_text

    if arguments.text is None:
        raise InvalidValue("--text FILE is needed: on which text shall the model be read?")
    with progress("activations") as tell:
        store = ActivationStore(
            model,
            at=at,
            texts=[read_text(arguments.text)],
            tokenizer=tokenizer,
            context=arguments.context,
            rows=arguments.rows,
            progress=tell,
            **options,
        )
    say(f"{len(store):,} activations of {store.d_in} entries at {at}")
    return store


def hook_of(sae: SparseAutoencoder, arguments: argparse.Namespace) -> str:
    """Returns where the autoencoder reads: what the arguments say, else what its file says.

    Raises:
        InvalidValue: If neither does.
    """
    at = arguments.at or sae.info.get("hook")
    if not at:
        raise InvalidValue(
            f"{arguments.sae} does not say where its activations come from: give --at HOOK, such "
            "as encoder.layer.3.output"
        )
    return str(at)


def model_of(sae: SparseAutoencoder, arguments: argparse.Namespace) -> str:
    """Returns the model that the autoencoder belongs to, by the arguments or its file.

    Raises:
        InvalidValue: If neither says it.
    """
    source = arguments.model or sae.info.get("model")
    if not source:
        raise InvalidValue(
            f"{arguments.sae} does not say which model it belongs to: give --model DIR"
        )
    return str(source)
