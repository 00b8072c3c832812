"""Whether a model directory can be pruned in memory here, or had better be streamed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from sparsecraft.model.memory import Room, room
from sparsecraft.model.streaming.shards import INDEX, read_header, weight_files

_SLACK = 1.2
"""What loading and pruning take beside the weights, at least."""


@dataclass(frozen=True)
class Choice:
    """What pruning in memory would take, and what there is.

    Args:
        needed: Bytes of the weights with what comes beside them.
        room: What may still be taken, None where that is not known.
    """

    needed: int
    room: Room | None

    @property
    def fits(self) -> bool:
        """Whether the model can be had in memory."""
        return self.room is None or self.needed <= self.room.bytes


def choose(directory: Path, dtype: torch.dtype, *, most: int | None = None) -> Choice | None:
    """Returns whether a directory fits into memory, or None if it has no safetensors to stream.

    Args:
        directory: A model directory.
        dtype: What the weights would be loaded as.
        most: Bytes of private memory that the process may have.
    """
    if not directory.is_dir() or not (
        (directory / INDEX).is_file() or any(directory.glob("*.safetensors"))
    ):
        return None
    files = [file for file in weight_files(directory) if file.is_file()]
    entries = [entry for file in files for entry in read_header(file)[0].values()]
    weights = sum(math.prod(entry.shape) for entry in entries) * dtype.itemsize
    # torch maps a file as private memory while it is read, which a limit of the process counts.
    largest = max((file.stat().st_size for file in files), default=0)
    free = room(most)
    limited = free is not None and free.limit.startswith("RLIMIT")
    return Choice(int(_SLACK * weights) + (largest if limited else 0), free)
