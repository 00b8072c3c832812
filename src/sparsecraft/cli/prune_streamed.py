"""`sparsecraft prune` for a model larger than memory: when it streams, and what it shows."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsecraft.cli.model_directory import calibration_batches, weights_dtype
from sparsecraft.cli.parser import Parser, flattened
from sparsecraft.cli.terminal import progress, say
from sparsecraft.core.errors import CheckpointError, InvalidValue, OutOfMemory

if TYPE_CHECKING:
    from sparsecraft.core.kinds import Method
    from sparsecraft.model.streaming import StreamReport
    from sparsecraft.model.streaming.budget import Budget
    from sparsecraft.model.streaming.skeleton import Skeleton
    from sparsecraft.model.targets import Targets

WAYS = ("auto", "always", "never")


def add_streaming(parser: Parser) -> None:
    """Adds the options for models larger than memory."""
    parser.add_argument(
        "--stream",
        choices=WAYS,
        default="auto",
        help="prune from directory to directory with one block in memory; auto: where the model "
        "does not fit",
    )
    parser.add_argument(
        "--max-memory",
        metavar="SIZE",
        help="private memory that may be taken, such as 4GiB (default: what the machine and the "
        "limits of the process leave)",
    )
    parser.add_argument(
        "--restart",
        action="store_true",
        help="throw away what an interrupted streamed run has done, instead of going on with it",
    )


def streams(arguments: argparse.Namespace, method: Method) -> bool:
    """Returns whether the model is to be pruned block by block.

    Raises:
        OutOfMemory: If it does not fit into memory and may not, or cannot, be streamed.
        InvalidValue: If options contradict each other.
    """
    from sparsecraft.core.kinds import Layerwise
    from sparsecraft.model.memory import format_bytes
    from sparsecraft.model.streaming.choice import choose

    if arguments.stream == "always":
        _check_options(arguments)
        return True
    dtype = weights_dtype(arguments.model, arguments.dtype)
    choice = choose(Path(arguments.model), dtype, most=max_memory(arguments))
    if choice is None or choice.fits or choice.room is None:
        return False
    why = (
        f"the model takes about {format_bytes(choice.needed)} in memory, and "
        f"{format_bytes(max(0, choice.room.bytes))} is left: {choice.room.limit}"
    )
    if arguments.stream == "never":
        raise OutOfMemory(f"{why}. Leave out --stream never, and it is pruned block by block.")
    if not isinstance(method, Layerwise):
        raise OutOfMemory(
            f"{why}; {method.info.name} compares the scores of all layers, so it cannot work block "
            "by block. Use a layer-wise method (magnitude, wanda, sparsegpt), or more memory."
        )
    _check_options(arguments)
    say(f"{why}. It is pruned block by block, from directory to directory.")
    return True


def max_memory(arguments: argparse.Namespace) -> int | None:
    """Returns the bytes of --max-memory, or None."""
    from sparsecraft.model.memory import parse_bytes

    return None if arguments.max_memory is None else parse_bytes(arguments.max_memory)


def open_streamed(arguments: argparse.Namespace) -> Skeleton:
    """Returns the model of the arguments without memory for its parameters."""
    from sparsecraft.model.streaming import open_directory

    return open_directory(Path(arguments.model))


def prune_streamed(arguments: argparse.Namespace, method: Method) -> StreamReport:
    """Prunes from directory to directory and returns what was done."""
    from sparsecraft.model.memory import return_freed_memory
    from sparsecraft.model.streaming import prune_directory

    return_freed_memory()
    calibration = partial(calibration_batches, arguments=arguments) if needs_data(method) else ()
    with progress(method.info.name) as tell:
        return prune_directory(
            arguments.model,
            arguments.out,
            method,
            targets=flattened(arguments.targets),
            calibration=calibration,
            max_memory=max_memory(arguments),
            seed=arguments.seed,
            resume=not arguments.restart,
            again=arguments.again,
            overwrite=arguments.overwrite,
            progress=tell,
            announce=lambda budget, targets: _announce(method, budget, targets),
        )


def needs_data(method: Any) -> bool:
    """Returns whether a method looks at what flows through the model."""
    return bool(getattr(method, "statistics", ()) or getattr(method, "needs_batches", False))


def memory_lines(peak: int | None, private: int | None = None) -> Sequence[str]:
    """Returns what is said about the memory that was taken, nothing where it is not known."""
    from sparsecraft.lab.report.values import size

    if peak is None:
        return ()
    mapped = f"; private memory at most {size(private)}" if private else ""
    return (f"peak memory {size(peak)}{mapped}",)


def _announce(method: Method, budget: Budget, targets: Targets) -> None:
    from sparsecraft.lab.report.values import size

    data = f" calibration on {budget.tokens} tokens," if budget.tokens else ""
    say(
        f"{method.info.name} on {len(targets)} matrices of {targets.numel} weights, block by block:"
        f"{data} about {size(budget.bytes)} of memory"
    )


def _check_options(arguments: argparse.Namespace) -> None:
    """Raises if other options contradict pruning block by block."""
    if arguments.dtype != "auto":
        raise InvalidValue(
            f"--dtype {arguments.dtype} contradicts pruning block by block (--stream), which keeps "
            "every tensor in the type it is saved in; leave --dtype out"
        )
    if arguments.packed:
        raise InvalidValue(
            "--packed contradicts pruning block by block (--stream): a packed file is written from "
            "a model in memory. Write the plain model, and pack it where there is memory for it."
        )
    if arguments.statistics is not None:
        raise InvalidValue(
            "--statistics contradicts pruning block by block (--stream): statistics are kept by a "
            "pruning in memory"
        )
    if not Path(arguments.model).is_dir():
        raise CheckpointError(
            f"there is no directory {arguments.model}; --stream always prunes directories. "
            "Download the model first."
        )
