"""What the verbs on a model directory have in common: arguments, loading, side files."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sparsecraft.cli.parser import Parser, positive
from sparsecraft.core.errors import InvalidValue

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

DTYPES = ("auto", "float32", "bfloat16", "float16")
LONGEST_WINDOW = 512


def add_calibration(parser: Parser) -> None:
    """Adds the options that say on which text a method looks at activations."""
    parser.add_argument(
        "--calibration", metavar="TEXT", help="UTF-8 text for methods that need data"
    )
    parser.add_argument(
        "--max-tokens", type=positive, default=16384, help="calibration tokens at most"
    )
    parser.add_argument(
        "--window",
        type=positive,
        metavar="TOKENS",
        help=f"calibration tokens in a row (default: what the model reads, at most "
        f"{LONGEST_WINDOW})",
    )


def add_directories(parser: Parser, *, kind: str) -> None:
    """Adds the options of what is read and written.

    Args:
        parser: Where they go.
        kind: What becomes of the model, such as "sparse".
    """
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="of the weights; auto: as they are saved"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"where the {kind} model goes")
    parser.add_argument("--overwrite", action="store_true", help="replace --out if it exists")
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="load weights that exist only as a pickle, which can run any code",
    )


def check_out(arguments: argparse.Namespace, *, kind: str) -> None:
    """Raises InvalidValue or CheckpointError if the result would have nowhere to go."""
    from sparsecraft.model.files import refuse_existing

    if arguments.out is not None:
        refuse_existing(arguments.out, overwrite=arguments.overwrite)
    elif not arguments.dry_run:
        raise InvalidValue(f"--out DIR is needed: where shall the {kind} model go? (or --dry-run)")


def load_model(arguments: argparse.Namespace) -> nn.Module:
    """Returns the model of the arguments in the dtype that they ask for."""
    from sparsecraft.model.checkpoints import load_pretrained

    dtype = weights_dtype(arguments.model, arguments.dtype)
    return load_pretrained(arguments.model, dtype=dtype, allow_pickle=arguments.allow_pickle)


def weights_dtype(source: str, asked: str) -> torch.dtype:
    """Returns the dtype that was asked for; "auto" is that of the saved weights."""
    import torch

    from sparsecraft.lab.tasks.pretrained import transformers_library

    if asked != "auto":
        return getattr(torch, asked)
    transformers = transformers_library("Reading a model directory")
    try:
        return transformers.AutoConfig.from_pretrained(source).dtype or torch.float32
    except (OSError, ValueError):
        return torch.float32  # load_pretrained says what is wrong with the directory


def calibration_batches(model: nn.Module, arguments: argparse.Namespace) -> list[dict[str, Tensor]]:
    """Returns the calibration text as batches of the model's own tokens.

    Raises:
        InvalidValue: If the directory has no tokenizer, or the text is too short.
    """
    from sparsecraft.lab.tasks.pretrained import load_tokenizer
    from sparsecraft.model.calibration_text import read_text, tokenize_text

    text = read_text(arguments.calibration)
    try:
        tokenizer = load_tokenizer(arguments.model)
    except (OSError, ValueError) as error:
        raise InvalidValue(
            f"{arguments.model} has no tokenizer, so the text cannot be read to the model. Put "
            "tokenizer.json there, or use the library from Python with your own calibration "
            "batches."
        ) from error
    window = arguments.window or min(_reads(model), LONGEST_WINDOW, arguments.max_tokens)
    return tokenize_text(tokenizer, text, window=window, max_tokens=arguments.max_tokens)


def side_files(source: str) -> Callable[[Path], None]:
    """Returns what copies the tokenizer and the like into the new directory."""
    from sparsecraft.model.side_files import copy_side_files

    def copy(folder: Path) -> None:
        root = Path(source)
        if not root.is_dir():
            from sparsecraft.lab.tasks.pretrained import load_tokenizer

            load_tokenizer(source).save_pretrained(str(folder))
            return
        copy_side_files(root, folder)

    return copy


def _reads(model: nn.Module) -> int:
    """Returns how many tokens the model can read at once."""
    return getattr(getattr(model, "config", None), "max_position_embeddings", LONGEST_WINDOW)
