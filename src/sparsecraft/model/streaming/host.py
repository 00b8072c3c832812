"""Prunes a model directory into another, block by block: neither model is ever in memory whole.

The host of Layerwise methods for models larger than memory. It reads a block from the byte ranges
of its tensors, gathers statistics with the hidden states that come through the pruned blocks before
it, prunes, writes the block into files of the same layout, lets the pruned block make the next
hidden states, and forgets it. The outcome is that of `prune` in memory, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from sparsecraft.core.errors import CheckpointError, InvalidValue
from sparsecraft.core.kinds import Layerwise, Method
from sparsecraft.model.checkpoints import read_settings
from sparsecraft.model.files import refuse_existing
from sparsecraft.model.memory import room
from sparsecraft.model.prunable import check_prunable
from sparsecraft.model.pruning import Batch, Progress, check_shapes, limited
from sparsecraft.model.streaming.budget import Budget
from sparsecraft.model.streaming.journal import Journal
from sparsecraft.model.streaming.layout import IN_MEMORY
from sparsecraft.model.streaming.report import StreamReport
from sparsecraft.model.streaming.run import StreamedPruning
from sparsecraft.model.streaming.shards import Shards
from sparsecraft.model.streaming.skeleton import Skeleton
from sparsecraft.model.targets import Select, Targets

Calibration = Sequence[Batch] | Callable[[nn.Module], Sequence[Batch]]


def prune_directory(
    source: str | Path,
    out: str | Path,
    method: str | Method = "magnitude",
    *,
    targets: Select = None,
    calibration: Calibration | None = None,
    max_tokens: int | None = None,
    max_memory: int | None = None,
    kind: str = "auto",
    seed: int = 0,
    resume: bool = True,
    again: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    announce: Callable[[Budget, Targets], None] | None = None,
    **options: Any,
) -> StreamReport:
    """Prunes a model directory into another with one block in memory, and returns what was done.

    Shards keep their names, keys, types and headers; what is not pruned is copied byte by byte.
    A run that was killed goes on where it was when it is started again with the same settings.

    Args:
        source: A Hugging Face directory with safetensors.
        out: The directory to write; it appears when it is complete.
        method: A Layerwise method: name in the catalog, "file.py:Class", or one that is built.
        targets: Which layers; see `find_targets`.
        calibration: Batches of forward arguments, for methods that look at activations; or what
            makes them for a model whose parameters have no memory.
        max_tokens: How many calibration tokens are used at most.
        max_memory: Bytes of private memory that the process may have; refused before the start if
            that is too little.
        kind: Which head the model has; see `load_pretrained`.
        seed: Of everything random.
        resume: Whether an interrupted run is taken up; otherwise it is thrown away.
        again: Whether a model that was pruned before may be pruned on top of it.
        overwrite: Whether `out` is replaced if it exists.
        progress: Called with (stage, done, total).
        announce: Called with the memory that is needed, and the targets, before the start.
        options: Settings of the method, for example sparsity=0.6, pattern="2:4".

    Raises:
        SparsityError: Naming what is wrong. Where the disk is full or the memory short in the
            middle, what is done so far is kept beside `out`, and the next run goes on with it.
    """
    source, out = Path(source), Path(out)
    refuse_existing(out, overwrite=overwrite)
    notes = check_prunable(source, again=again)
    skeleton = open_directory(source, kind=kind)
    chosen, found = check_streamable(skeleton, method, targets=targets, **options)
    given = calibration(skeleton.model) if callable(calibration) else calibration or ()
    batches = limited(list(given), max_tokens)
    pruning = StreamedPruning(skeleton, chosen, found, batches, seed, Journal(out))
    budget = pruning.budget
    if announce is not None:
        announce(budget, found)
    budget.check(room(max_memory))
    return pruning.run(out, resume=resume, notes=notes, progress=progress)


def open_directory(source: Path, *, kind: str = "auto") -> Skeleton:
    """Returns the model of a directory without memory for its parameters.

    Raises:
        CheckpointError: If it is no directory of safetensors, or cannot be had block by block.
    """
    if not source.is_dir():
        raise CheckpointError(
            f"there is no directory {source}; block by block, only a directory can be pruned. "
            "Download the model first."
        )
    if read_settings(source).get("form") == "compact":
        raise CheckpointError(
            f"{source} is a compact model, whose shapes its config cannot say. {IN_MEMORY}"
        )
    return Skeleton(Shards.of(source), kind=kind)


def check_streamable(
    skeleton: Skeleton, method: str | Method, *, targets: Select = None, **options: Any
) -> tuple[Layerwise, Targets]:
    """Returns the method and its targets, or raises if it cannot work block by block.

    Raises:
        InvalidValue: For a method that compares all layers with one another.
        SparsityError: As `sparsecraft.model.pruning.check`.
    """
    chosen, found = check_shapes(skeleton.model, method, targets=targets, **options)
    if not isinstance(chosen, Layerwise):
        raise InvalidValue(
            f"{chosen.info.name} compares the scores of all layers, so it needs the whole model in "
            "memory. Use a layer-wise method (magnitude, wanda, sparsegpt), or --stream never."
        )
    return chosen, found
