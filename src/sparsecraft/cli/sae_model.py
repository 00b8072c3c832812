"""What the `sae` commands have in common: the model, its tokenizer, its activations on a text."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sparsecraft.cli.model_directory import DTYPES, weights_dtype
from sparsecraft.cli.parser import Parser, positive
from sparsecraft.cli.terminal import progress, say
from sparsecraft.core.errors import CheckpointError, InvalidValue

if TYPE_CHECKING:
    from torch import nn

    from sparsecraft.model.activation_store import ActivationStore
    from sparsecraft.model.sae import SparseAutoencoder

    Module = TypeVar("Module", bound=nn.Module)

CONTEXT = 128


def add_text(parser: Parser, *, trained: bool = False) -> None:
    """Adds the options that say on which text the model's activations are taken, and where.

    Args:
        parser: Where they go.
        trained: Whether an autoencoder is there, which knows the context of its training.
    """
    parser.add_argument("--text", type=Path, metavar="FILE", help="UTF-8 text that the model reads")
    parser.add_argument(
        "--context",
        type=positive,
        default=None if trained else CONTEXT,
        metavar="TOKENS",
        help=f"tokens read in a row{' (default: as in its training)' if trained else ''}",
    )
    alike = "; default: as in its training" if trained else ""
    parser.add_argument(
        "--prepend-bos",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="begin each context with the tokenizer's BOS, which tokenizers such as that of GPT-2 "
        f"do not set by themselves{alike or '; default: as the tokenizer does'}",
    )
    parser.add_argument(
        "--skip-first",
        type=int,
        default=None if trained else 0,
        metavar="N",
        help=f"positions left out at the start of each context{alike}",
    )
    parser.add_argument(
        "--rows", type=positive, metavar="N", help="activations at most (default: all of the text)"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="of the model's weights; auto: as saved"
    )
    parser.add_argument(
        "--device", default="cpu", metavar="NAME", help="where all is computed: cpu, cuda, cuda:1"
    )


def add_trained_model(parser: Parser) -> None:
    """Adds the model that a saved autoencoder belongs to, and its text."""
    parser.add_argument("sae", metavar="SAE", help="autoencoder directory, of any format we read")
    parser.add_argument("--model", metavar="MODEL", help="directory or hub id of the model")
    parser.add_argument(
        "--at", metavar="HOOK", help="where its activations are (default: as the file says)"
    )
    parser.add_argument(
        "--to", metavar="HOOK", help="where a transcoder writes (default: as the file says)"
    )
    add_text(parser, trained=True)
    parser.add_argument(
        "--no-gradients",
        action="store_true",
        help="select without the gradient of the model's loss, also where it was trained with it",
    )


def placed(module: Module, device: str) -> Module:
    """Returns a module on a device.

    Raises:
        InvalidValue: If there is no such device here.
    """
    try:
        return module.to(device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidValue(f"--device {device} cannot be used here: {reason}") from error


def load_parts(source: str, arguments: argparse.Namespace) -> tuple[nn.Module, Any]:
    """Returns the model of a directory or hub id on the device asked for, and its tokenizer.

    Args:
        source: The directory or id, or a name of TransformerLens such as gpt2-small.
        arguments: With the type of the weights and the device.

    Raises:
        InvalidValue: If there is no tokenizer, or no such device.
        CheckpointError: If there is no such model.
    """
    from sparsecraft.lab.tasks.pretrained import load_tokenizer
    from sparsecraft.model.checkpoints import load_pretrained
    from sparsecraft.model.hub_names import hub_id

    source = hub_id(source)
    try:
        model = load_pretrained(source, dtype=weights_dtype(source, arguments.dtype))
    except CheckpointError as error:
        if "/" in source or Path(source).exists():
            raise
        raise CheckpointError(
            f"{error}\nIf {source} is what another library calls this model, give its directory or "
            "its hub id, org/name."
        ) from error
    try:
        tokenizer = load_tokenizer(source)
    except (OSError, ValueError) as error:
        raise InvalidValue(
            f"{source} has no tokenizer, so no text can be read to it. Put tokenizer.json there, "
            "or make the store from Python with your own batches."
        ) from error
    return placed(model, arguments.device), tokenizer


def load_trained(arguments: argparse.Namespace) -> SparseAutoencoder:
    """Returns the autoencoder of the arguments on the device asked for."""
    from sparsecraft.model.sae import SparseAutoencoder

    return placed(SparseAutoencoder.from_pretrained(arguments.sae), arguments.device)


def harvest(
    model: nn.Module,
    tokenizer: Any,
    hooks: Sequence[str],
    arguments: argparse.Namespace,
    path: Path | None = None,
    **options: Any,
) -> dict[str, ActivationStore]:
    """Returns the activations at some places on the text of the arguments, with a progress bar.

    Args:
        model: The model.
        tokenizer: Of the model.
        hooks: The places, all read in one pass.
        arguments: With the text.
        path: A folder for them; with several places, one in it for each.
        options: Of `ActivationStore`, where the arguments do not say otherwise.
    """
    from sparsecraft.model.activation_store import ActivationStore

    reading = {**options, **_reading(tokenizer, arguments), "rows": arguments.rows}
    with progress("activations") as tell:
        if len(hooks) == 1:
            store = ActivationStore(model, at=hooks[0], path=path, progress=tell, **reading)
            stores = {hooks[0]: store}
        else:
            stores = ActivationStore.harvest_many(
                model, at=hooks, path=path, progress=tell, **reading
            )
    for at, store in stores.items():
        say(f"{len(store):,} activations of {store.d_in} entries at {at}")
    return stores


def harvest_live(
    model: nn.Module,
    tokenizer: Any,
    hooks: Sequence[str],
    arguments: argparse.Namespace,
    **options: Any,
) -> dict[str, ActivationStore]:
    """Returns a place's activations on the text of the arguments, made while they are read.

    Arguments are those of `harvest`.

    Raises:
        InvalidValue: If there are several places, or so many rows are asked for.
    """
    from sparsecraft.model.activation_store import LiveActivations

    if len(hooks) > 1:
        raise InvalidValue(
            f"--live reads one place, and {len(hooks)} were given: leave --live out, or run the "
            "command once for each"
        )
    if arguments.rows is not None:
        raise InvalidValue("--rows is of stored activations: leave it out, or --live")
    reading = {**options, **_reading(tokenizer, arguments)}
    with progress("first activations") as tell:
        store = LiveActivations(
            model, at=hooks[0], buffer_rows=arguments.buffer, progress=tell, **reading
        )
    say(f"activations of {store.d_in} entries at {hooks[0]}, made as they are read")
    return {hooks[0]: store}


def _reading(tokenizer: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the options of a store that say which text is read, and how."""
    from sparsecraft.model.calibration_text import read_text

    if arguments.text is None:
        raise InvalidValue("--text FILE is needed: on which text shall the model be read?")
    asked = {name: getattr(arguments, name) for name in ("context", "prepend_bos", "skip_first")}
    text = {"texts": [read_text(arguments.text)], "tokenizer": tokenizer}
    return {**{name: value for name, value in asked.items() if value is not None}, **text}


def reread(
    sae: SparseAutoencoder, model: nn.Module, tokenizer: Any, arguments: argparse.Namespace
) -> ActivationStore:
    """Returns activations for a trained autoencoder, taken as those of its training were."""
    from sparsecraft.model.sae.origin import harvest_remarks, harvest_settings

    at = hook_of(sae, arguments)
    for remark in harvest_remarks(sae.info):
        say(f"note: {remark}")
    stores = harvest(
        model,
        tokenizer,
        [at],
        arguments,
        gradients=sae.activation.needs_gradient and not arguments.no_gradients,
        to=(arguments.to or sae.info.get("hook_out")) if sae.transcoder else arguments.to,
        **harvest_settings(sae.info),
    )
    return stores[at]


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
