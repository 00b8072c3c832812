"""Pruning models that are larger than memory, from directory to directory, block by block."""

from sparsecraft.model.streaming.host import check_streamable, open_directory, prune_directory
from sparsecraft.model.streaming.report import StreamReport

__all__ = ["StreamReport", "check_streamable", "open_directory", "prune_directory"]
